"""DecisionTrainer: TRL's GRPOTrainer on decision tables, with true masking and exact resume.

The only file that subclasses TRL. Each override says what it replaces and why;
tests/training/test_grpo_overrides.py lists them with the signatures relied upon. Leaves out the
model, the tracker, and which checkpoints stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from gptoss_tools.chat.families import chat_of
from gptoss_tools.core.stream import StepStream
from gptoss_tools.errors import ConfigError, TrainingError
from gptoss_tools.models.adapters import attach_adapter, auxiliary_losses
from gptoss_tools.models.branch_attention import fuses
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training import masking, shared_prefix
from gptoss_tools.training.configuring import build_dataset, make_config, phases_of, tokenize
from gptoss_tools.training.exact_actions import ExactActions
from gptoss_tools.training.rewarding import DecisionReward, InvalidWatch, Record
from gptoss_tools.training.sampling import GenerationSampler
from gptoss_tools.training.sharing import SharesPrompts
from gptoss_tools.training.steady import SteadySaves
from gptoss_tools.training.stopping import StopsAtActions
from gptoss_tools.training.vllm_sync import send_adapted_only
from gptoss_tools.training.zero_signal import SilentGroups

__all__ = ["DecisionReward", "DecisionTrainer", "build_dataset", "make_config"]


class DecisionTrainer(
    SilentGroups, StopsAtActions, ExactActions, SharesPrompts, SteadySaves, GRPOTrainer
):
    """Train `model` (a PEFT model, or a plain one for full fine-tuning) on `train_dataset`.

    `on_completions` gets one list of records per generation batch, on the main process only.
    Checkpoints are `step-000020` in `args.output_dir`; which of them stay is decided elsewhere.
    `allow_changes` lets a resume go on without the state that would make it exact.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        args: GRPOConfig,
        train_dataset: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        reward: DecisionReward,
        on_completions: Callable[[list[Record]], None] | None = None,
        share_prompts: bool = False,
        tokens_per_forward: int | None = None,
        fused_attention: bool = False,
        action_gradient: str = "sampled",
        stop_at_action: bool = False,
        skip_silent: bool = False,
        resample_rounds: int = 0,
        reasoning_effort: str = "medium",
        allow_changes: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.reward = reward
        self.on_completions = on_completions
        self.share_prompts = share_prompts
        self.tokens_per_forward = tokens_per_forward
        self.fused_attention = fused_attention
        self.action_gradient = action_gradient
        self.stop_at_action = stop_at_action
        self.skip_silent = skip_silent
        self.resample_rounds = resample_rounds
        self.allow_changes = allow_changes
        self.watch = InvalidWatch()
        self._keep = torch.ones(0, dtype=torch.bool)
        self._valid_rows_in_window = 0
        generations = args.num_generations or 1
        prompts = args.per_device_train_batch_size * args.world_size // generations
        self.stream = StepStream(len(train_dataset), prompts, generations, args.seed)
        if self.stream.clipped:
            raise ConfigError(
                f"prompts_per_step is {prompts} and the table has {len(train_dataset)} rows",
                hint="a step draws distinct rows: lower prompts_per_step or add rows",
            )
        decoding: Any = model.generation_config
        reward.chat = chat = chat_of(
            tokenizer, reasoning_effort=reasoning_effort, generation_config=decoding
        )
        tokenizer.pad_token = chat.pad_token
        # Generation stops at any of these; TRL reads the list from here.
        decoding.eos_token_id = list(chat.stops)
        super().__init__(
            model=model,
            args=args,
            reward_funcs=reward,
            train_dataset=train_dataset,
            processing_class=tokenizer,
            callbacks=[*(callbacks or []), _Window(self)],
        )
        if self.use_vllm and isinstance(model, PeftModel):
            send_adapted_only(self.vllm_generation, model)
        self.check_exact()
        self.check_silent(args.per_device_train_batch_size)
        self.remove_callback(PrinterCallback)  # stdout belongs to results
        # generate() counts positions from the first real token, TRL's scoring counts the padding
        # too. Rotary attention sees only differences, but rounding in bfloat16 sees the rest.
        for scored in (self.model, self.ref_model):
            if isinstance(scored, torch.nn.Module):
                scored.register_forward_pre_hook(_add_position_ids, with_kwargs=True)
        self.follow_branches((self.model, self.ref_model))

    @classmethod
    def build(
        cls,
        settings: TrainSettings,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: datasets.Dataset,
        args: GRPOConfig,
        on_completions: Callable[[list[Record]], None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> DecisionTrainer:
        """Put a new adapter on a base model and make its trainer; seed before, A is drawn here."""
        return cls(
            model=attach_adapter(model, settings),
            args=args,
            train_dataset=dataset,
            tokenizer=tokenizer,
            reward=DecisionReward.from_settings(settings, tokenizer, phases_of(dataset)),
            on_completions=on_completions,
            share_prompts=settings.share_prompts,
            tokens_per_forward=settings.tokens_per_forward,
            fused_attention=fuses(settings.attn_implementation, model.device),
            action_gradient=settings.action_gradient,
            stop_at_action=settings.stop_at_action,
            skip_silent=settings.zero_signal != "keep",
            resample_rounds=settings.resample_rounds if settings.zero_signal == "resample" else 0,
            reasoning_effort=settings.reasoning_effort,
            allow_changes=settings.allow_changes,
            callbacks=callbacks,
        )

    def _send_telemetry(self) -> None:
        """Replaces TRL's usage ping: this program reports to nobody."""

    def _get_train_sampler(self, dataset: datasets.Dataset | None = None) -> Sampler:
        """Replaces TRL's epoch shuffle: rows are a pure function of (seed, micro-step)."""
        return GenerationSampler(
            self.stream,
            micro_steps=self.args.max_steps * self.args.gradient_accumulation_steps,
            steps_per_generation=self.args.steps_per_generation,
            num_iterations=self.num_iterations,
        )

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        """Replaces TRL's: prompts are Harmony text already, no template and no BOS is added."""
        return tokenize(self.processing_class, prompts), None, {}

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """Extends TRL's: hand out the records, refuse inf, remember which rows have no reward."""
        with masking.without_unscorable_warning():
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if torch.isinf(rewards).any():
            raise TrainingError("the reward function returned an infinite reward")
        start = self.accelerator.process_index * len(prompts)
        own = slice(start, start + len(prompts))
        self._keep = ~torch.isnan(rewards).all(dim=1)[own]
        self.remember_silent(rewards[:, 0], own)
        if self.action_gradient == "sampled":  # else they lack their expected rewards yet
            self._publish_records(gather_object(self.reward.records))
        return rewards

    def _generate_and_score_completions(self, inputs):
        """Extends TRL's: rows without a reward also leave the loss, its denominators and the KL."""

        def score(rows: Any) -> dict[str, Any]:
            batch = super(DecisionTrainer, self)._generate_and_score_completions(rows)
            masking.mask_rows(batch, self._keep, self.accelerator.gather)
            for name in self.reward.rewards.figures():  # running sums: TRL would take their mean
                del self._metrics["train" if self.model.training else "eval"][name][:-1]
            return batch

        batch = score(inputs)
        if self.skip_silent and self.model.training:
            self.replace_silent(batch, score)
        return batch

    def _prepare_inputs(self, generation_batch):
        """Extends TRL's: put the loss's correction for masked rows beside each new micro-batch."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before:
            if self.share_prompts:
                # Neither an optimizer step nor a generation begins within such a window.
                window = math.gcd(self.args.gradient_accumulation_steps, len(self._buffered_inputs))
                self._buffered_inputs = shared_prefix.regroup(self._buffered_inputs, window)
                inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
            scale = masking.loss_scale(
                self.loss_type, self._buffered_inputs, self.accelerator.gather
            )
            for micro_batch in self._buffered_inputs:
                micro_batch["loss_scale"] = scale
        return inputs

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Extends TRL's: no dropout or noise while drawing, and prompts read once where shared."""
        model, training = self.accelerator.unwrap_model(self.model_wrapped), self.model.training
        model.eval()
        try:
            with self.prompts_read_once(model):
                return super()._generate_single_turn(*args, **kwargs)
        finally:
            model.train(training)

    def _compute_loss(self, model, inputs):
        """Extends TRL's: apply that correction, and count the rows the optimizer step rests on.

        A MixLoRA's own losses come on top, as TRL adds a router's: a mean over the micro-steps.
        """
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            self._valid_rows_in_window += int(inputs["completion_mask"].any(dim=1).sum())
        if "loss_scale" in inputs:
            loss = loss * inputs["loss_scale"].to(loss)
        for name, own in auxiliary_losses(self.accelerator.unwrap_model(model)).items():
            loss = loss + own / self.current_gradient_accumulation_steps
            self._metrics["train"][f"{name}_loss"].append(float(own.detach()))
        return loss

    def _publish_records(self, records: list[Record]) -> None:
        """Number the records of a generation batch, all processes together, and pass them on.

        `step` counts finished optimizer steps; `micro_step` (from 1) is the draw the prompt came
        from, counted from the step's first. TRL shuffles rows over the generation batch before it
        cuts micro-batches, so it is not necessarily the micro-batch the row is trained in.
        """
        if not (self.accelerator.is_main_process and self.model.training):
            return
        first = self._step % self.args.gradient_accumulation_steps
        rows_per_draw = self.stream.prompts_per_step * self.stream.num_generations
        for place, record in enumerate(records):
            record["step"] = self.state.global_step
            record["micro_step"] = first + place // rows_per_draw + 1
        if self.reward.invalid_reward == "mask" and records:
            self.watch.update(sum(r["reason"] != "ok" for r in records) / len(records))
        if self.on_completions is not None:
            self.on_completions(records)

    def layout(self) -> list[int]:
        """Extends the mixin's by what decides how rows meet generations."""
        return [*super().layout(), self.args.steps_per_generation, self.args.num_iterations]

    def extra_state(self) -> dict[str, Any]:
        """The generation buffer and everything not yet logged."""
        return {
            "buffer": self._buffered_inputs,
            "step_time": self._current_train_step_time,
            "watch": self.watch.state(),
            "odd_answers": list(self.odd_answers),
            "metrics": dict(self._metrics["train"]),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back, so that a resume is exact at any step."""
        self._buffered_inputs = state["buffer"]
        self._current_train_step_time = state["step_time"]
        self.watch.load(state["watch"])
        self.odd_answers = state.get("odd_answers", self.odd_answers)
        self._metrics["train"].update(state["metrics"])

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        """Extends the mixin's: TRL counts micro-steps by itself and forgets them."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps


class _Window(TrainerCallback):
    """What has to happen inside Trainer's loop, where no method can be overridden."""

    def __init__(self, trainer: DecisionTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Without a single valid row, leave weights and moments alone: Adam skips absent grads."""
        trainer = self.trainer
        count = torch.tensor([trainer._valid_rows_in_window], device=args.device)
        trainer._valid_rows_in_window = 0
        if not int(trainer.accelerator.gather(count).sum()):
            trainer.model.zero_grad(set_to_none=True)


def _add_position_ids(module, args, kwargs):
    if kwargs.get("fused_lm_head") and "position_ids" not in kwargs:
        mask = kwargs["attention_mask"]
        kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return args, kwargs
