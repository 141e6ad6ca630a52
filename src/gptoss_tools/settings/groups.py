"""The groups that commands share, so that a name means one thing in every command."""

from __future__ import annotations

import datetime
import os
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from gptoss_tools.errors import ConfigError


def one_or_many(value: Any) -> Any:
    """Let one path stand for a list of it."""
    return [os.fspath(value)] if isinstance(value, str | os.PathLike) else value


Paths = Annotated[list[str], BeforeValidator(one_or_many)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
AtLeastZero = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes
Effort = Literal["none", "low", "medium", "high"]


def spelled(name: str) -> str:
    """Return a field's name as users write it: `from_` is `from`, a word Python keeps to itself."""
    return name.removesuffix("_")


def hint_of(error: ValidationError) -> str | None:
    """Return the hint of the first complaint, where a validator of ours has made it."""
    first = error.errors(include_url=False, include_input=False)[0]
    return getattr(first.get("ctx", {}).get("error"), "hint", None)


class Settings(BaseModel):
    """Base of every group: no unknown keys, no infinite numbers, no change after creation.

    Validators are built when a class is first used: a help page needs none of them. They raise
    ConfigError with a hint, which pydantic wraps and `hint_of` finds again.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,
    )


class TableSettings(Settings):
    """How tables are read."""

    encoding: str = Field("utf-8", description="Text encoding of CSV and JSONL files.")
    delimiter: str = Field(
        ",", min_length=1, max_length=1, description="Column separator of CSV files."
    )


class HubDataSettings(Settings):
    """Which part of a Hub dataset is read."""

    split: str = Field("train", description="Split of a Hub dataset.")
    subset: str | None = Field(None, description="Subset of a Hub dataset (openai/gsm8k: main).")
    revision: str | None = Field(
        None, description="Branch, tag or commit of a Hub dataset (default: the newest)."
    )


class DryRunSettings(Settings):
    """Whether to do anything at all."""

    dry_run: bool = Field(False, description="Say what would happen and write nothing.")


class ShardSettings(Settings):
    """Which part of the tables this machine takes, where several share the work."""

    shard: str | None = Field(
        None, description="Take only every n-th table: `2/8` is the second of eight machines."
    )


class OverwriteSettings(DryRunSettings):
    """Whether existing outputs may be replaced."""

    overwrite: bool = Field(False, description="Replace outputs that already exist.")


class PromptSettings(Settings):
    """What the Harmony system message says, and what other models' chat templates are told."""

    date: str | None = Field(
        None, description="Date in the system message, YYYY-MM-DD (default: today)."
    )
    reasoning_effort: Effort = Field(
        "medium",
        description="Reasoning level in the system message; `none` turns the switch for thinking "
        "that other models' chat templates have, which gpt-oss's has not.",
    )
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
                raise ConfigError(
                    "not a day of the form YYYY-MM-DD", "2026-01-31, say; left out, it is today"
                )
        return date


class ExpertsSettings(Settings):
    """How a gpt-oss's experts are held."""

    experts: Literal["auto", "packed", "dequantized"] = Field(
        "auto",
        description="How the experts are held: packed in MXFP4, a third of the memory, or "
        "dequantized (auto: dequantized where there is memory for it).",
    )


class ModelSettings(ExpertsSettings):
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
        "auto", description="Code of dequantized experts: auto, grouped_mm, batched_mm or eager."
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
            raise ConfigError(
                "not two or more different names", "one per action, in the order of q_action_k"
            )
        return actions


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
