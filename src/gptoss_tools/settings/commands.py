"""One class per command that does not train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gptoss_tools.errors import ConfigError
from gptoss_tools.settings.groups import (
    ActionSettings,
    DecodingSettings,
    EpisodeSettings,
    ModelSettings,
    OverwriteSettings,
    Paths,
    PlantSettings,
    Positive,
    PromptSettings,
    Seed,
    Settings,
    ShardSettings,
    TableSettings,
)
from gptoss_tools.settings.remote import RemoteSettings
from gptoss_tools.settings.rewards import RewardSettings


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
    series: Paths = Field(
        [], description="CSV files with hourly load and carbon to use instead of the generator."
    )
    write_series: str | None = Field(
        None, description="Folder for the generated series as CSV files, one per episode."
    )
    seed: Seed = Field(42, description="Seed of everything drawn at random.")


class ConvertHarmonySettings(PromptSettings, TableSettings, ShardSettings, OverwriteSettings):
    """convert-harmony."""

    paths: Paths = Field(description="Tables to convert: files, folders or globs.")
    suffix: str = Field("_harmony", description="Added to the name of the converted file.")
    format: Literal["text", "messages"] = Field(
        "text", description="Write rendered Harmony text, or messages as JSON."
    )


class CalcRewardSettings(TableSettings, ShardSettings, OverwriteSettings):
    """calc-reward."""

    paths: Paths = Field(["data"], description="Tables to score: files, folders or globs.")
    tau: float = Field(0.05, description="Temperature of the Boltzmann rewards, in the units of Q.")
    method: Literal["boltzmann", "log-regret", "regret", "minmax", "rank"] = Field(
        "boltzmann", description="How values become rewards."
    )
    missing: Literal["error", "mask", "drop"] = Field(
        "error", description="What an empty value means: stop, no reward, or leave the row out."
    )


class CheckDataSettings(TableSettings, ShardSettings):
    """check-data."""

    paths: Paths = Field(["data"], description="Tables to check: files, folders or globs.")


class AnswerSettings(
    DecodingSettings, ActionSettings, ModelSettings, PromptSettings, TableSettings
):
    """What is asked, and how the model is held while it answers."""

    prompt: str | None = Field(None, description="The prompt itself; `-` reads standard input.")
    prompt_file: str | None = Field(None, description="File that holds the prompt.")

    @field_validator("prompt")
    @classmethod
    def _readable(cls, prompt: str | None) -> str | None:
        # What a terminal of another encoding types reaches Python as half characters.
        if prompt is not None and prompt.encode(errors="replace").decode() != prompt:
            raise ConfigError(
                "not text in the terminal's encoding", "put it into a file: --prompt-file"
            )
        return prompt


class TestAdapterSettings(AnswerSettings):
    """test-adapter."""

    __test__ = False  # not a test class, whatever its name says

    target: str = Field("runs/latest", description="Run, checkpoint or adapter folder.")
    data: Paths = Field(["data/heldout"], description="Tables to take the prompt from.")
    row: Positive = Field(1, description="Which row of the table, from 1.")


class GenerateSettings(RemoteSettings, OverwriteSettings, AnswerSettings):
    """generate."""

    target: str = Field("runs/latest", description="Run, adapter, exported model, or base model.")
    data: Paths = Field([], description="Tables whose every row is answered.")
    out: str | None = Field(None, description="JSONL file for the answers of a table.")


class EvaluateSettings(
    RemoteSettings,
    PlantSettings,
    EpisodeSettings,
    OverwriteSettings,
    DecodingSettings,
    RewardSettings,
    ActionSettings,
    ModelSettings,
    PromptSettings,
    TableSettings,
):
    """evaluate."""

    target: str = Field("runs/latest", description="Run, adapter, exported model, or base model.")
    data: Paths = Field(
        ["data/heldout"],
        description="Tables with values for every action, or with what the rewards read (default "
        "rewards: those of the run).",
    )
    tasks: list[str] = Field(
        [],
        description="Tasks of lm-evaluation-harness, separated by commas (extra `eval`). The "
        "tables are then evaluated only if --data, --samples or --closed-loop is given too.",
    )
    limit: Positive | None = Field(
        None, description="Examples per task, the first ones (default: all)."
    )
    task_folder: str | None = Field(
        None, description="Folder with task definitions of one's own (YAML)."
    )
    compare: bool = Field(True, description="Let a base model answer the same rows and tasks.")
    compare_with: str | None = Field(
        None, description="That model (default: the adapter's own base)."
    )
    samples: Annotated[int, Field(ge=0)] = Field(
        0, description="Answers drawn per row beside the greedy one (majority, best of n, pass@k)."
    )
    closed_loop: Paths = Field(
        [],
        description="Hourly series (CSV files, folders or globs) in which the policy drives the "
        "plant.",
    )
    out: str | None = Field(
        None, description="Folder to write (default: RUN/evaluation, or evaluations/NAME)."
    )

    @field_validator("tasks")
    @classmethod
    def _apart(cls, tasks: list[str]) -> list[str]:
        names = [name.strip() for given in tasks for name in given.split(",")]
        return list(dict.fromkeys(name for name in names if name))

    @model_validator(mode="after")
    def _of_tasks(self) -> EvaluateSettings:
        if not self.tasks and (self.limit is not None or self.task_folder is not None):
            raise ConfigError(
                "`limit` and `task_folder` are about tasks, and none is named", "--tasks names some"
            )
        return self


class ReportSettings(OverwriteSettings):
    """report."""

    runs: Paths = Field(["runs/latest"], description="Run folders.")
    out: str | None = Field(
        None,
        description="HTML file (default: report.html in the run's folder; of several, beside it).",
    )
    open: bool = Field(False, description="Open the report in the browser.")


class RunsSettings(Settings):
    """runs."""

    folders: Paths = Field(["runs"], description="Run folders, or folders that hold them.")


class ExportSettings(RemoteSettings, OverwriteSettings):
    """export."""

    target: str = Field("runs/latest", description="Run, checkpoint or adapter folder.")
    base: str | None = Field(None, description="Base checkpoint (default: the adapter's own).")
    format: Literal["auto", "mxfp4", "bf16", "gguf", "adapter", "merged"] = Field(
        "auto",
        description="mxfp4: the published layout; bf16: experts dequantised; gguf: one file for "
        "llama.cpp and Ollama; adapter: the adapter alone, for PEFT and as a GGUF LoRA; merged: "
        "models other than gpt-oss, in their own layout; auto: mxfp4 or merged.",
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
