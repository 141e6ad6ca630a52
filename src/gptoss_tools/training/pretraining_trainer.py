"""PretrainTrainer: transformers' Trainer on windows of text, with its own measure of both parts."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.adapters import auxiliary_losses
from gptoss_tools.models.machine import resolve_device
from gptoss_tools.models.text_training import OrderedTrainer, training_arguments
from gptoss_tools.settings import PretrainSettings
from gptoss_tools.training.pretraining_data import (
    Purpose,
    Tokens,
    WindowData,
    WindowOrder,
    collate,
)
from gptoss_tools.training.steady import SteadySaves

SAME_NAME = [
    "gradient_accumulation_steps",
    "max_steps",
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


def make_arguments(
    settings: PretrainSettings, output_dir: str, world_size: int
) -> TrainingArguments:
    """The TrainingArguments of resolved settings; ConfigError where rows do not divide."""
    rows = settings.windows_per_step or 1
    if rows % world_size:
        raise ConfigError(
            f"windows_per_step {rows} does not divide over {world_size} processes",
            hint="make windows_per_step a multiple of the number of processes",
        )
    on_cpu = resolve_device(settings.device).type == "cpu"
    return training_arguments(
        output_dir,
        on_cpu=on_cpu,
        **{name: getattr(settings, name) for name in SAME_NAME},
        per_device_train_batch_size=rows // world_size,
        bf16=settings.dtype == "bfloat16" or (settings.dtype == "auto" and not on_cpu),
        ddp_backend="gloo" if on_cpu and world_size > 1 else None,
        ddp_find_unused_parameters=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="steps",
        save_total_limit=None,  # Trainer would look for checkpoint-N, ours are step-N
    )


class PretrainTrainer(SteadySaves, OrderedTrainer):
    """Train on next tokens, and measure both parts of the corpus when asked to evaluate.

    `first` and `last` hold the first and the newest figures of this sitting.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        tokens: Tokens,
        tokenizer: PreTrainedTokenizerBase,
        settings: PretrainSettings,
        callbacks: list[TrainerCallback] | None = None,
        allow_changes: bool = False,
    ):
        self.tokens, self.settings, self.allow_changes = tokens, settings, allow_changes
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.rows = args.per_device_train_batch_size * args.world_size
        length = args.max_steps * args.gradient_accumulation_steps * self.rows
        # A new gpt-oss has to learn to use all its experts; one that was trained does so already.
        self.balance = settings.from_ is None and settings.model_type == "gpt-oss"
        super().__init__(
            # A pure function of (seed, micro-step), wherever the run goes on from.
            order=WindowOrder(
                tokens,
                seed=args.seed,
                rows=self.rows,
                micro_steps=args.max_steps * args.gradient_accumulation_steps,
                done=lambda: self.state.global_step * args.gradient_accumulation_steps,
            ),
            model=model,
            args=args,
            train_dataset=WindowData(tokens, length),
            data_collator=collate,  # type: ignore[arg-type]
            processing_class=tokenizer,
            callbacks=[*(callbacks or []), _Measuring(self)],
        )

    def loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean over every token of a window, and what routers add in training."""
        options = {"output_router_logits": True} if self.balance and model.training else {}
        outputs = model(input_ids=inputs["input_ids"], use_cache=False, **options)
        logits = outputs.logits.float().flatten(0, 1)
        loss = cross_entropy(logits, inputs["targets"].flatten())
        if model.training:
            if self.balance:
                loss = loss + self.settings.router_aux_loss_coef * outputs.aux_loss
            for extra in auxiliary_losses(self.accelerator.unwrap_model(model)).values():
                loss = loss + extra
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Extends Trainer's: count tokens, and epochs in passes over them instead of over steps."""
        per_step = self.rows * self.args.gradient_accumulation_steps * self.tokens.block_size
        seen = self.state.global_step * per_step
        self.state.num_input_tokens_seen = seen
        self.state.epoch = seen / len(self.tokens.train)
        if "loss" in logs:
            logs["num_tokens"] = seen
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Replaces Trainer's: measure both parts and log it."""
        figures = self.measure()
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, figures
        )
        return figures

    def measure(self) -> dict[str, float]:
        """The loss on each part with its standard error, over the same windows every time.

        Nothing is drawn from the random state that training draws from.
        """
        started = time.monotonic()
        figures: dict[str, float] = {}
        for name, purpose in (("", Purpose.EVAL_VALIDATION), ("train_", Purpose.EVAL_TRAIN)):
            losses = self._losses(purpose)
            error = losses.std(ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
            figures[f"eval_{name}loss"] = float(losses.mean())
            figures[f"eval_{name}loss_se"] = float(error)
        figures["eval_seconds"] = time.monotonic() - started
        self.first = self.first or figures
        self.last = figures
        return figures

    def _losses(self, purpose: Purpose) -> np.ndarray:
        """The loss of each evaluation batch, its rows shared out over the processes."""
        model: Any = self.model
        rank, share = self.args.process_index, self.args.per_device_train_batch_size
        training = model.training
        model.eval()
        losses = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in range(self.settings.eval_batches or 1):
                starts = self.tokens.draw(purpose, self.args.seed, batch, self.rows)
                mine = starts[rank * share : (rank + 1) * share]
                inputs = self._prepare_inputs(collate(self.tokens.windows(purpose, mine)))
                losses.append(self.loss(model, inputs))
        model.train(training)
        gathered: Any = self.accelerator.gather(torch.stack(losses)[None])
        return gathered.mean(dim=0).double().cpu().numpy()


class _Measuring(TrainerCallback):
    """Measure before the first step of a sitting, every `eval_steps` steps and after the last."""

    def __init__(self, trainer: PretrainTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Before any step; what a resumed sitting begins with is no new record of that step."""
        if state.global_step == 0:
            self.trainer.evaluate()
        else:
            figures = self.trainer.measure()
            self.trainer.callback_handler.on_evaluate(args, state, control, figures)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for an evaluation where it is due."""
        due = state.global_step % self.trainer.settings.eval_steps == 0
        control.should_evaluate = due or state.global_step == state.max_steps
        return control
