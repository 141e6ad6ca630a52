"""Every setting, declared once: the field is the flag, the variable, the TOML key and the keyword.

Groups are mixins, so a name means one thing in every command. These are plain pydantic models: they
read nothing; `load.load` adds flags, variables and TOML. Names are TRL's where TRL has one. What is
not here reaches GRPOConfig through the TOML table `[trainer]` (the `trainer` field).
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
AtLeastZero = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes

LossType = Literal["dr_grpo", "dapo", "grpo", "bnpo", "cispo"]
Effort = Literal["low", "medium", "high"]


class Settings(BaseModel):
    """Base of every group: no unknown keys, no infinite numbers, no change after creation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class TableSettings(Settings):
    """How tables are read."""

    encoding: str = Field("utf-8", description="Text encoding of CSV and JSONL files.")
    delimiter: str = Field(
        ",", min_length=1, max_length=1, description="Column separator of CSV files."
    )


class DryRunSettings(Settings):
    """Whether to do anything at all."""

    dry_run: bool = Field(False, description="Say what would happen and write nothing.")


class OverwriteSettings(DryRunSettings):
    """Whether existing outputs may be replaced."""

    overwrite: bool = Field(False, description="Replace outputs that already exist.")


class PromptSettings(Settings):
    """What the Harmony system message says."""

    date: str | None = Field(
        None, description="Date in the system message, YYYY-MM-DD (default: today)."
    )
    reasoning_effort: Effort = Field("medium", description="Reasoning level in the system message.")
    model_identity: str | None = Field(
        None, description="First line of the system message (default: the template's own)."
    )

    @field_validator("date")
    @classmethod
    def _a_day(cls, date: str | None) -> str | None:
        if date is not None:
            try:
                day = datetime.date.fromisoformat(date)
            except ValueError:
                day = None
            if day is None or day.isoformat() != date:
                raise ValueError("not a day of the form YYYY-MM-DD")
        return date


class ModelSettings(Settings):
    """Which base model, and how it is held."""

    model: str = Field(
        "openai/gpt-oss-20b",
        description="Base model: a Hub id, a folder, or `tiny` (built here, no Hub, no GPU).",
    )
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = Field(
        "auto",
        description="Type of the dequantised weights (auto: bfloat16 on GPU, float32 on CPU).",
    )
    attn_implementation: str = Field(
        "auto", description="Attention code (auto: eager, which trains through the sinks anywhere)."
    )
    experts_implementation: str = Field(
        "auto", description="Experts code: auto, grouped_mm, batched_mm or eager."
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N."
    )


class DecodingSettings(Settings):
    """How completions are drawn outside training."""

    sample: bool = Field(False, description="Draw at random instead of taking the likeliest token.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Sampling temperature.")
    top_p: Share = Field(1.0, description="Nucleus: keep this much probability.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Keep this many tokens (0: all).")
    max_new_tokens: Positive = Field(4000, description="Longest completion, in tokens.")
    seed: Seed = Field(42, description="Seed of everything drawn at random.")
    batch_size: Positive = Field(32, description="Prompts decoded together.")


class ActionSettings(Settings):
    """How an answer becomes an action."""

    actions: list[str] = Field(
        [],
        description="Names of the actions in the order of q_action_k, where the table has no "
        "column `actions`: answers are then names, not numbers.",
    )
    action_pattern: str | None = Field(
        None,
        description="Regular expression with one group, the action's index or name, that the whole "
        "final answer must match (default: [k], or the name with or without brackets).",
    )

    @field_validator("actions")
    @classmethod
    def _told_apart(cls, actions: list[str]) -> list[str]:
        folded = [" ".join(name.split()).casefold() for name in actions]
        if len(set(folded)) < len(folded) or not all(folded) or len(folded) == 1:
            raise ValueError("give two or more different names")
        return actions


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
    max_prompt_length: Positive = Field(1000, description="Longest prompt, in tokens.")
    long_prompts: Literal["error", "drop"] = Field(
        "error",
        description="What to do with a longer prompt: stop, or leave the row out and count.",
    )
    max_completion_length: Positive = Field(4000, description="Longest completion, in tokens.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Sampling temperature.")
    top_p: Share = Field(1.0, description="Nucleus: keep this much probability.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Keep this many tokens (0: all).")
    reward: str = Field("decision", description="Reward function: a name or pkg.mod:function.")
    invalid_reward: float | Literal["mask", "worst"] = Field(
        "worst",
        description="Reward of an answer that is no action: `mask` leaves it out of group and "
        "loss, `worst` counts it as the row's worst action (at most 0), a number is that number.",
    )


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
    loss_type: LossType = Field("dr_grpo", description="Normalisation of the GRPO loss.")
    scale_rewards: Literal["none", "group", "batch"] = Field(
        "none", description="Divide advantages by the standard deviation of group or batch."
    )
    beta: AtLeastZero = Field(0.0, description="Weight of the KL term (0: no reference model).")
    epsilon: Annotated[float, Field(gt=0)] = Field(0.2, description="Clip range of the ratio.")
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: less memory, more time."
    )
    seed: Seed = Field(42, description="Seed of everything drawn at random.")


class EpisodeSettings(Settings):
    """Which rows belong together."""

    episode_column: str = Field(
        "episode",
        description="Column that names each row's episode, for the confidence intervals; `row`: "
        "every row stands alone.",
    )
    tie_tolerance: AtLeastZero = Field(
        1e-9, description="Actions this close to the best one, in units of Q, count as best."
    )


class HeldOutSettings(Settings):
    """Measuring the policy on held-out rows while it trains."""

    eval_steps: Positive | None = Field(
        None,
        description="Optimizer steps between evaluations on eval_data, which also keep the best "
        "adapter as adapter-best (default: none).",
    )
    eval_data: list[str] = Field(
        ["data/heldout"], description="Held-out tables: files, folders or globs."
    )
    eval_batch_size: Positive = Field(32, description="Held-out prompts decoded together.")


class LoggingSettings(Settings):
    """What a run writes beside its weights."""

    save_steps: Positive = Field(20, description="Optimizer steps between checkpoints.")
    save_total_limit: Positive | None = Field(
        None, description="Keep only this many newest checkpoints (default: all)."
    )
    logging_steps: Positive = Field(1, description="Optimizer steps between metric records.")
    log_completions: bool = Field(True, description="Write completions.csv.")
    completion_log_path: str | None = Field(
        None, description="Where completions go (default: completions.csv in the run folder)."
    )
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] = Field(
        "none", description="Experiment tracker."
    )
    run_name: str | None = Field(None, description="Name of the run in the tracker.")


class TrainSettings(
    DryRunSettings,
    HeldOutSettings,
    LoggingSettings,
    OptimizerSettings,
    RolloutSettings,
    LoraSettings,
    ActionSettings,
    ModelSettings,
    PromptSettings,
    TableSettings,
):
    """train-grpo."""

    data: list[str] = Field(["data/train"], description="Tables: files, folders or globs.")
    output_dir: str | None = Field(
        None, description="Run folder (default: the next free runs/grpo-NNN)."
    )
    resume: str | None = Field(None, description="Checkpoint or run folder to go on from.")
    allow_changes: bool = Field(
        False, description="Go on although data or settings differ, so no longer exactly."
    )
    trainer: dict[str, Any] = Field(
        default_factory=dict, description="More GRPOConfig arguments (TOML table [trainer] only)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        shadowed = sorted(set(self.trainer) & (set(type(self).model_fields) - {"trainer"}))
        if shadowed:
            raise ValueError(f"[trainer] repeats `{shadowed[0]}`, which is a setting of its own")
        experts = any(m == "experts" for m in self.lora_target_modules)
        if experts and self.lora_dropout:
            raise ValueError("lora_dropout must be 0 when lora_target_modules holds `experts`")
        return self


class ResumeSettings(DryRunSettings):
    """resume: what may change in a run that goes on."""

    run: str = Field("runs/latest", description="Run folder or checkpoint.")
    max_steps: Positive | None = Field(None, description="Train to this many steps in all.")
    save_steps: Positive | None = Field(None, description="Optimizer steps between checkpoints.")
    eval_steps: Positive | None = Field(None, description="Optimizer steps between evaluations.")
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] | None = Field(
        None, description="Experiment tracker."
    )
    allow_changes: bool = Field(
        False, description="Go on although data or settings differ, so no longer exactly."
    )


class PlantSettings(Settings):
    """The thermal-storage plant, and how hourly series of it are read."""

    start_soc: AtLeastZero = Field(150.0, description="Stored energy at the start, kWh.")
    levels: list[float] = Field(
        [0.0, 1 / 3, 2 / 3, 1.0], description="Output levels, one action each (shares of rated_kw)."
    )
    rated_kw: Annotated[float, Field(gt=0)] = Field(100.0, description="Rated output, kW.")
    capacity_kwh: Annotated[float, Field(gt=0)] = Field(300.0, description="Store size, kWh.")
    cop: Annotated[float, Field(gt=0)] = Field(4.0, description="Cooling per unit electricity.")
    loss: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Share lost per hour.")
    penalty: AtLeastZero = Field(10.0, description="kgCO2 charged per kWh of unmet load.")
    time_column: str | None = Field(None, description="Name of the time column of the series.")
    load_column: str | None = Field(None, description="Name of the load column (kW).")
    carbon_column: str | None = Field(None, description="Name of the carbon column (kg/kWh).")
    series_encoding: str = Field("utf-8", description="Text encoding of the series.")


class MakeDatasetSettings(PlantSettings, OverwriteSettings):
    """make-dataset."""

    out: str = Field("data/tes.csv", description="Table to write.")
    profile: list[Literal["duck", "noon", "peak"]] = Field(
        ["duck", "noon", "peak"], description="Shapes of load and carbon, used in turn."
    )
    episodes: Positive = Field(12, description="Generated episodes.")
    days: Positive = Field(3, description="Days per episode.")
    off_path_rows: Annotated[int, Field(ge=0)] = Field(
        6, description="Rows per episode at stored energies off the optimal path."
    )
    on_path_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="Rows per episode on the optimal path (0: every decision hour)."
    )
    series: list[str] = Field(
        [], description="CSV files with hourly load and carbon to use instead of the generator."
    )
    write_series: str | None = Field(
        None, description="Folder for the generated series as CSV files, one per episode."
    )
    seed: Seed = Field(42, description="Seed of everything drawn at random.")


class ConvertHarmonySettings(PromptSettings, TableSettings, OverwriteSettings):
    """convert-harmony."""

    paths: list[str] = Field(description="Tables to convert: files, folders or globs.")
    suffix: str = Field("_harmony", description="Added to the name of the converted file.")
    format: Literal["text", "messages"] = Field(
        "text", description="Write rendered Harmony text, or messages as JSON."
    )


class CalcRewardSettings(TableSettings, OverwriteSettings):
    """calc-reward."""

    paths: list[str] = Field(["data"], description="Tables to score: files, folders or globs.")
    tau: float = Field(0.05, description="Temperature of the Boltzmann rewards, in the units of Q.")
    method: Literal["boltzmann", "log-regret", "regret", "minmax", "rank"] = Field(
        "boltzmann", description="How values become rewards."
    )
    missing: Literal["error", "mask", "drop"] = Field(
        "error", description="What an empty value means: stop, no reward, or leave the row out."
    )


class CheckDataSettings(TableSettings):
    """check-data."""

    paths: list[str] = Field(["data"], description="Tables to check: files, folders or globs.")


class AnswerSettings(
    DecodingSettings, ActionSettings, ModelSettings, PromptSettings, TableSettings
):
    """What is asked, and how the model is held while it answers."""

    quantized: bool = Field(False, description="Keep the experts packed in MXFP4.")
    prompt: str | None = Field(None, description="The prompt itself; `-` reads standard input.")
    prompt_file: str | None = Field(None, description="File that holds the prompt.")

    @field_validator("prompt")
    @classmethod
    def _readable(cls, prompt: str | None) -> str | None:
        # What a terminal of another encoding types reaches Python as half characters.
        if prompt is not None and prompt.encode(errors="replace").decode() != prompt:
            raise ValueError("not text in the terminal's encoding; give it as --prompt-file")
        return prompt


class TestAdapterSettings(AnswerSettings):
    """test-adapter."""

    __test__ = False  # not a test class, whatever its name says

    target: str = Field("runs/latest", description="Run, checkpoint or adapter folder.")
    data: list[str] = Field(["data/heldout"], description="Tables to take the prompt from.")
    row: Positive = Field(1, description="Which row of the table, from 1.")


class GenerateSettings(OverwriteSettings, AnswerSettings):
    """generate."""

    target: str = Field("runs/latest", description="Run, adapter, exported model, or base model.")
    data: list[str] = Field([], description="Tables whose every row is answered.")
    out: str | None = Field(None, description="JSONL file for the answers of a table.")


class EvaluateSettings(
    PlantSettings,
    EpisodeSettings,
    OverwriteSettings,
    DecodingSettings,
    ActionSettings,
    ModelSettings,
    PromptSettings,
    TableSettings,
):
    """evaluate."""

    target: str = Field("runs/latest", description="Run, adapter, exported model, or base model.")
    data: list[str] = Field(["data/heldout"], description="Tables with values for every action.")
    compare: bool = Field(True, description="Let a base model answer the same rows.")
    compare_with: str | None = Field(
        None, description="That model (default: the adapter's own base)."
    )
    samples: Annotated[int, Field(ge=0)] = Field(
        0, description="Answers drawn per row beside the greedy one (majority, best of n, pass@k)."
    )
    closed_loop: list[str] = Field(
        [],
        description="Hourly series (CSV files, folders or globs) in which the policy drives the "
        "plant.",
    )
    quantized: bool = Field(False, description="Keep the experts packed in MXFP4.")
    out: str | None = Field(
        None, description="Folder to write (default: RUN/evaluation, or evaluations/NAME)."
    )


class ReportSettings(OverwriteSettings):
    """report."""

    runs: list[str] = Field(["runs/latest"], description="Run folders.")
    out: str | None = Field(
        None,
        description="HTML file (default: report.html in the run's folder; of several, beside it).",
    )
    open: bool = Field(False, description="Open the report in the browser.")


class RunsSettings(Settings):
    """runs."""

    folders: list[str] = Field(["runs"], description="Run folders, or folders that hold them.")


class ExportSettings(OverwriteSettings):
    """export."""

    target: str = Field("runs/latest", description="Run, checkpoint or adapter folder.")
    base: str | None = Field(None, description="Base checkpoint (default: the adapter's own).")
    format: Literal["mxfp4", "bf16", "gguf", "adapter"] = Field(
        "mxfp4",
        description="mxfp4: the published layout; bf16: experts dequantised; gguf: one file for "
        "llama.cpp and Ollama; adapter: the adapter alone, for PEFT and as a GGUF LoRA.",
    )
    gguf_dtype: Literal["bf16", "f32"] = Field(
        "bf16", description="Type of the attention weights in a GGUF (f32: unrounded)."
    )
    requantize_experts: bool = Field(
        False,
        description="Merge LoRA on experts into MXFP4 all the same, at the loss that is printed.",
    )
    out: str | None = Field(None, description="Folder to write (default: exports/NAME).")
    push: bool = Field(False, description="Upload the export to the Hub (needs HF_TOKEN).")
    repo_id: str | None = Field(None, description="Hub repository, user/name.")


class VerifyExportSettings(Settings):
    """verify-export."""

    folder: str = Field(description="Exported folder.")
    base: str | None = Field(None, description="Base checkpoint (default: the adapter's own).")
    forward: bool = Field(True, description="Also run a prompt through it, where memory allows.")


class DemoSettings(OverwriteSettings):
    """demo."""

    out: str = Field("runs/demo", description="Folder for everything the demo writes.")
    max_steps: Positive = Field(200, description="Optimizer steps.")
    seed: Seed = Field(42, description="Seed of everything drawn at random.")


class DoctorSettings(Settings):
    """doctor."""

    model: str = Field(
        "openai/gpt-oss-20b",
        description="Base model: a Hub id, a folder, or `tiny` (built here, no Hub, no GPU).",
    )
