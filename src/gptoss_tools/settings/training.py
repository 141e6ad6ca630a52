"""What the training commands have in common, train-grpo, and resume."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gptoss_tools.errors import ConfigError
from gptoss_tools.settings.groups import (
    ActionSettings,
    AtLeastZero,
    DryRunSettings,
    ModelSettings,
    Paths,
    Positive,
    PromptSettings,
    Seed,
    Settings,
    Share,
    TableSettings,
)
from gptoss_tools.settings.remote import RemoteSettings
from gptoss_tools.settings.rewards import RewardSettings

LossType = Literal["dr_grpo", "dapo", "grpo", "bnpo", "cispo"]


class LoraSettings(Settings):
    """The adapter."""

    lora_r: Positive = Field(4, description="Rank of the LoRA matrices.")
    lora_alpha: Positive = Field(
        8, description="LoRA scale: the update is multiplied by alpha / r."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="LoRA dropout.")
    lora_target_modules: list[str] = Field(
        ["all-linear"],
        description="Modules that get LoRA; all-linear is q, k, v, o on gpt-oss; `experts` adds "
        "the experts, which then cannot be merged into MXFP4.",
    )


class AdapterSettings(LoraSettings):
    """Which kind of adapter; the published names and defaults of MixLoRA (arXiv 2404.15159)."""

    adapter: Literal["lora", "mixlora", "none"] = Field(
        "lora",
        description="What learns: LoRA, a mixture of LoRA experts (its defaults: lora_r 8, "
        "lora_alpha 16, lora_dropout 0.05), or the whole model.",
    )
    num_experts: Positive = Field(4, description="LoRA experts of MixLoRA.")
    experts_per_token: Positive = Field(2, description="LoRA experts that serve each token.")
    router_aux_loss_coef: AtLeastZero = Field(
        0.001, description="Weight of MixLoRA's load-balance loss."
    )
    router_init_range: Annotated[float, Field(gt=0)] = Field(
        0.02, description="Standard deviation of the MixLoRA router's first weights."
    )
    jitter_noise: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="MixLoRA's router inputs are scaled by 1 +- this while training."
    )
    mixlora_form: Literal["shared", "parallel"] = Field(
        "shared",
        description="shared: LoRA experts inside the base's FFN; parallel: beside it, also on "
        "experts packed in MXFP4.",
    )
    dual_path: bool = Field(
        False, description="MixLoRA also learns from a noised copy of its input (S2MoE)."
    )

    @model_validator(mode="before")
    @classmethod
    def _mixlora_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("adapter") == "mixlora":
            return {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05} | values
        return values

    @model_validator(mode="after")
    def _consistent_adapter(self) -> AdapterSettings:
        if self.adapter == "mixlora" and self.experts_per_token > self.num_experts:
            raise ConfigError(
                "experts_per_token is more than num_experts",
                f"--experts-per-token {self.num_experts} or less",
            )
        if self.adapter == "mixlora" and self.lora_target_modules != ["all-linear"]:
            raise ConfigError(
                "lora_target_modules has no meaning for a MixLoRA, which adapts all",
                "leave it out, or --adapter lora",
            )
        if "experts" in self.lora_target_modules and self.lora_dropout:
            raise ConfigError(
                "lora_dropout must be 0 when lora_target_modules holds `experts`",
                "--lora-dropout 0",
            )
        return self


class RolloutSettings(Settings):
    """How prompts are drawn and completions scored."""

    num_generations: Annotated[int, Field(ge=2)] = Field(
        16, description="Completions per prompt: the group of GRPO."
    )
    prompts_per_step: Positive = Field(
        1, description="Distinct prompts per micro-step, over all processes."
    )
    gradient_accumulation_steps: Positive = Field(4, description="Micro-steps per optimizer step.")
    steps_per_generation: Positive | None = Field(
        None,
        description="Micro-steps served by one generation call (default: as many as are "
        "accumulated).",
    )
    num_iterations: Positive = Field(1, description="Passes over each generated batch.")
    share_prompts: bool = Field(
        False,
        description="Compute each prompt once for all of its completions, in generation and in "
        "training: the same figures up to rounding, several times faster with long prompts.",
    )
    tokens_per_forward: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="With share_prompts: pack groups into forward passes of at most this many "
        "tokens (default: a micro-step in one pass).",
    )
    action_gradient: Literal["sampled", "exact"] = Field(
        "sampled",
        description="Learn from the action that was drawn, or from the expected reward over all "
        "actions at the end of the drawn reasoning: the same gradient with less chance in it.",
    )
    stop_at_action: bool = Field(
        False,
        description="End a completion behind the bracket of a valid action: nothing is drawn after "
        "the decision, and the end is not learned.",
    )
    zero_signal: Literal["keep", "skip", "resample"] = Field(
        "keep",
        description="Groups that all earned the same, and table rows that cannot but: compute them "
        "as TRL does, leave them out of the computation, or draw others in their place as well.",
    )
    resample_rounds: Positive = Field(
        2, description="How often a step may draw again with zero_signal resample."
    )
    max_prompt_length: Positive = Field(1000, description="Longest prompt, in tokens.")
    long_prompts: Literal["error", "drop"] = Field(
        "error",
        description="What to do with a longer prompt: stop, or leave the row out and count.",
    )
    max_completion_length: Positive = Field(4000, description="Longest completion, in tokens.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Sampling temperature.")
    top_p: Share = Field(1.0, description="Nucleus: keep this much probability.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Keep this many tokens (0: all).")


class OptimizerSettings(Settings):
    """The update."""

    max_steps: Positive = Field(200, description="Optimizer steps.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Shape of the learning rate over the steps."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps of rising rate.")
    weight_decay: AtLeastZero = Field(0.0, description="AdamW weight decay.")
    max_grad_norm: AtLeastZero = Field(1.0, description="Clip the gradient to this norm.")
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: less memory, more time."
    )
    seed: Seed = Field(42, description="Seed of everything drawn at random.")


class GrpoLossSettings(Settings):
    """The GRPO objective."""

    loss_type: LossType = Field("dr_grpo", description="Normalisation of the GRPO loss.")
    scale_rewards: Literal["none", "group", "batch"] = Field(
        "none", description="Divide advantages by the standard deviation of group or batch."
    )
    beta: AtLeastZero = Field(0.0, description="Weight of the KL term (0: no reference model).")
    epsilon: Annotated[float, Field(gt=0)] = Field(0.2, description="Clip range of the ratio.")


class HeldOutSettings(Settings):
    """Measuring the policy on held-out rows while it trains."""

    eval_steps: Positive | None = Field(
        None,
        description="Optimizer steps between evaluations on eval_data, which also keep the best "
        "adapter as adapter-best (default: none).",
    )
    eval_data: Paths = Field(
        ["data/heldout"], description="Held-out tables: files, folders or globs."
    )
    eval_batch_size: Positive = Field(32, description="Held-out prompts decoded together.")


class CompletionLogSettings(Settings):
    """What a run keeps of the answers it trains on."""

    log_completions: bool = Field(True, description="Write completions.csv.")
    completion_log_path: str | None = Field(
        None, description="Where completions go (default: completions.csv in the run folder)."
    )


class LoggingSettings(Settings):
    """What a run writes beside its weights."""

    save_steps: Positive = Field(20, description="Optimizer steps between checkpoints.")
    save_total_limit: Positive | None = Field(
        None, description="Keep only this many newest checkpoints (default: all)."
    )
    logging_steps: Positive = Field(1, description="Optimizer steps between metric records.")
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] = Field(
        "none", description="Experiment tracker."
    )
    run_name: str | None = Field(None, description="Name of the run in the tracker.")


class RunSettings(DryRunSettings):
    """Where a run lives, and whether it goes on from another."""

    output_dir: str | None = Field(
        None, description="Run folder (default: the next free one, runs/grpo-001, say)."
    )
    resume: str | None = Field(None, description="Checkpoint or run folder to go on from.")
    allow_changes: bool = Field(
        False, description="Go on although data or settings differ, so no longer exactly."
    )


class TrainSettings(
    RemoteSettings,
    RunSettings,
    HeldOutSettings,
    CompletionLogSettings,
    LoggingSettings,
    GrpoLossSettings,
    OptimizerSettings,
    RolloutSettings,
    RewardSettings,
    AdapterSettings,
    ActionSettings,
    ModelSettings,
    PromptSettings,
    TableSettings,
):
    """train-grpo."""

    data: Paths = Field(["data/train"], description="Tables: files, folders or globs.")
    trainer: dict[str, Any] = Field(
        default_factory=dict, description="More GRPOConfig arguments (TOML table [trainer] only)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        shadowed = sorted(set(self.trainer) & (set(type(self).model_fields) - {"trainer"}))
        if shadowed:
            raise ConfigError(
                f"[trainer] repeats `{shadowed[0]}`, which is a setting of its own",
                f"leave it out there and give --{shadowed[0].replace('_', '-')}",
            )
        if self.adapter == "mixlora" and self.beta:
            raise ConfigError(
                "beta must be 0 with a MixLoRA: TRL would load another whole model",
                "--beta 0, or --adapter lora",
            )
        if self.stop_at_action and (
            self.action_pattern is not None
            or self.reward != ["decision"]
            or self.action_gradient == "exact"
        ):
            raise ConfigError(
                "stop_at_action needs reward decision alone, no action_pattern and action_gradient "
                "sampled",
                "leave out stop_at_action, or what it does not go together with",
            )
        self._generation_is_ours()
        if self.zero_signal != "keep" and (self.beta or self.adapter == "mixlora"):
            raise ConfigError(
                f"zero_signal {self.zero_signal} needs beta 0 and no MixLoRA: their losses count "
                "every row",
                "--zero-signal keep",
            )
        if self.zero_signal == "resample" and self.scale_rewards == "batch":
            raise ConfigError(
                "zero_signal resample and scale_rewards batch do not go together",
                "--zero-signal skip, or --scale-rewards group",
            )
        if self.share_prompts and self.adapter == "mixlora":
            raise ConfigError(
                "share_prompts and a MixLoRA do not go together: its balance loss "
                "counts every row's prompt",
                "leave out share_prompts, or --adapter lora",
            )
        if self.action_gradient == "exact":
            self._exact_is_possible()
        branching = ("auto", "eager", "flex_attention")
        if self.share_prompts and self.attn_implementation not in branching:
            raise ConfigError(
                f"share_prompts needs attn_implementation {', '.join(branching[:2])} or "
                f"{branching[2]}: others know no branches",
                "--attn-implementation auto, or leave out share_prompts",
            )
        if self.tokens_per_forward and (not self.share_prompts or self.action_gradient == "exact"):
            raise ConfigError(
                "tokens_per_forward needs share_prompts and action_gradient sampled: only groups "
                "that share a prompt are packed",
                "leave out tokens_per_forward, or what it does not go together with",
            )
        return self

    def _generation_is_ours(self) -> None:
        """Refuse ways of TRL's to generate that pass by what is done to `model.generate`."""
        # The second is the older name of the first.
        paged = ("use_transformers_continuous_batching", "use_transformers_paged")
        for name, others in (("stop_at_action", ("use_vllm", *paged)), ("share_prompts", paged)):
            other = next((one for one in others if self.trainer.get(one)), None)
            if getattr(self, name) and other:
                raise ConfigError(
                    f"{name} changes how transformers generates, and {other} in [trainer] passes "
                    "that by",
                    "leave out one of the two",
                )

    def _exact_is_possible(self) -> None:
        attention = self.attn_implementation in ("auto", "eager")
        needs = [
            (self.reward == ["decision"], "reward decision alone", "--reward decision"),
            (
                self.invalid_reward != "mask",
                "an invalid_reward: masked answers have no expected reward",
                "--invalid-reward worst",
            ),
            (
                self.scale_rewards == "none",
                "scale_rewards none: it would divide by a spread that goes to 0",
                "--scale-rewards none",
            ),
            (
                attention,
                "attn_implementation auto or eager: its mask is no causal one",
                "--attn-implementation auto",
            ),
            (
                self.zero_signal == "keep",
                "zero_signal keep: no group is without a signal",
                "--zero-signal keep",
            ),
        ]
        for met, need, hint in needs:
            if not met:
                raise ConfigError(f"action_gradient exact needs {need}", hint)


class ResumeSettings(RemoteSettings, DryRunSettings):
    """resume: what may change in a run that goes on."""

    run: str = Field("runs/latest", description="Run folder or checkpoint.")
    max_steps: Positive | None = Field(None, description="Train to this many steps in all.")
    resume_steps: Positive | None = Field(
        None, description="Train this many steps more than the checkpoint has (not max_steps)."
    )
    save_steps: Positive | None = Field(None, description="Optimizer steps between checkpoints.")
    eval_steps: Positive | None = Field(None, description="Optimizer steps between evaluations.")
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] | None = Field(
        None, description="Experiment tracker."
    )
    allow_changes: bool = Field(
        False, description="Go on although data or settings differ, so no longer exactly."
    )
