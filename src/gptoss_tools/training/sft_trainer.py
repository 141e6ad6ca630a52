"""SftTrainer: TRL's SFTTrainer on rows we tokenised, with exact resume and an adapter's own losses.

What TRL would fill in with a surprise is set here: its MoE loss (on, with gpt-oss's own weight of
0.9), mixed precision (on, whatever the device), dataset preparation and shuffling.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from gptoss_tools.errors import ConfigError, TrainingError
from gptoss_tools.models.adapters import auxiliary_losses
from gptoss_tools.models.machine import resolve_device, weight_type
from gptoss_tools.settings.sft import SftSettings
from gptoss_tools.training.sft_passes import PassSampler
from gptoss_tools.training.steady import SteadySaves

# Settings of ours under TRL's own name, copied as they are.
SAME_NAME = [
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "gradient_checkpointing",
    "seed",
    "save_steps",
    "logging_steps",
    "run_name",
]


def make_config(settings: SftSettings, output_dir: str, world_size: int = 1) -> SFTConfig:
    """The SFTConfig of a run whose checkpoints go to `output_dir`; `max_steps` must be set.

    Raises ConfigError for what TRL refuses.
    """
    device = resolve_device(settings.device)
    dtype = weight_type(settings.dtype, device)
    on_cpu = device.type == "cpu"
    values: dict[str, Any] = {name: getattr(settings, name) for name in SAME_NAME}
    values |= {
        "output_dir": str(output_dir),
        "report_to": [],  # trackers come as callbacks
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16 and not on_cpu,
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and world_size > 1 else None,
        "ddp_find_unused_parameters": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "router_aux_loss_coef": 0.0,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # it is all done: see sft_data
        # All batches are full. Else accelerate, which counts rows, drops figures of the last one.
        "dataloader_drop_last": True,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_total_limit": None,  # Trainer would look for checkpoint-N, ours are step-N
        "logging_nan_inf_filter": False,  # it would show such a loss as 0
    }
    try:
        return SFTConfig(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses these settings: {error}") from error


class SftTrainer(SteadySaves, SFTTrainer):
    """Train `model`, with whatever adapter it carries, on rows of `input_ids` and `labels`."""

    def __init__(
        self,
        *,
        model: Any,
        args: SFTConfig,
        train_dataset: datasets.Dataset,
        tokenizer: Any,
        allow_changes: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.allow_changes = allow_changes
        # The id is never seen: padding is masked, and its labels are ignored.
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        base_config = model.config.get_text_config()
        own_coefficient = getattr(base_config, "router_aux_loss_coef", None)
        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=pad),
            train_dataset=train_dataset,
            processing_class=tokenizer,
            callbacks=[_Passes(len(train_dataset)), *(callbacks or [])],
        )
        if own_coefficient is not None:
            # TRL has switched the loss off in the config too, which is saved with a whole model.
            base_config.router_aux_loss_coef = own_coefficient

    def _send_telemetry(self) -> None:
        """Replaces TRL's usage ping: this program reports to nobody."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        """Replaces Trainer's shuffle: rows are a pure function of seed and step."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        total = self.args.max_steps * rows_per_step(self.args, self.args.world_size)
        return PassSampler(len(dataset), total, self.args.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Extends TRL's: add the adapter's own losses, each logged as NAME_loss.

        They are means over a micro-batch, so they are averaged over the accumulated ones.
        """
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.state.num_input_tokens_seen = self._total_train_tokens  # kept in checkpoints
        parts = auxiliary_losses(self.model)
        if return_outputs or not parts:
            return loss
        for name, part in parts.items():
            mean = self.accelerator.gather_for_metrics(part.detach()).mean()
            self._metrics["train"][f"{name}_loss"].append(mean.item())
        steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        return loss + sum(part.to(loss.device) for part in parts.values()) / steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Extends TRL's: raise TrainingError where the loss is no number, before it is saved."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                f"the loss of step {self.state.global_step} is {logs['loss']}",
                hint="start another run with a smaller learning_rate; is the base model sound?",
            )
        super().log(logs, start_time)

    def extra_state(self) -> dict[str, Any]:
        """What TRL counts between two log lines."""
        return {"metrics": dict(self._metrics["train"]), "tokens": self._total_train_tokens}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._metrics["train"].update(state["metrics"])
        self._total_train_tokens = state["tokens"]


class _Passes(TrainerCallback):
    """Let `epoch` count passes over the data: the sampler is one endless pass to Trainer."""

    def __init__(self, n_rows: int):
        self.n_rows = n_rows

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Before the step is logged."""
        state.epoch = state.global_step * rows_per_step(args, args.world_size) / self.n_rows


def rows_per_step(args: Any, world_size: int) -> int:
    """Examples of one optimizer step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size
