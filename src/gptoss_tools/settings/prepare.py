"""prepare-data: published datasets to tables of prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gptoss_tools.settings.groups import (
    HubDataSettings,
    OverwriteSettings,
    Paths,
    Positive,
    Seed,
    Share,
    TableSettings,
)
from gptoss_tools.settings.rewards import TagSettings


class PrepareRowSettings(TagSettings):
    """What becomes of a row, wherever it comes from."""

    data_format: str = Field(
        "auto",
        description="What the columns hold: a name of docs/datasets.md or pkg.mod:function (auto: "
        "told by the columns' names).",
    )
    system_prompt: str | None = Field(None, description="Instructions put before every prompt.")
    ask_for_tags: bool = Field(
        False, description="Ask for reasoning_tags and answer_tags in the instructions."
    )
    rubric_in_prompt: bool = Field(
        False,
        description="Show the rubric before the question. An answer that repeats it then earns "
        "the full reward `rubric-overlap`.",
    )
    pitfalls: Literal["error", "positive", "negative"] = Field(
        "error",
        description="Whether fulfilling a rubric's pitfall is good, where neither its words nor "
        "its weight tell (error: leave the row out).",
    )
    max_prompt_chars: Positive | None = Field(
        None, description="Leave out rows with a longer prompt, in characters (default: none)."
    )
    max_examples: Positive | None = Field(
        None, description="Keep this many rows, always the same ones of a seed (default: all)."
    )
    train_fraction: Share = Field(
        0.9, description="Share of prompts for training; the others are for evaluation."
    )
    split_by: str | None = Field(
        None, description="Column whose rows of one value stay together (default: the prompt)."
    )
    seed: Seed = Field(42, description="Seed of everything drawn at random.")
    strict: bool = Field(False, description="Stop if any row must be left out.")


class PrepareDataSettings(PrepareRowSettings, HubDataSettings, TableSettings, OverwriteSettings):
    """prepare-data."""

    paths: Paths = Field(
        description="Datasets: files (CSV, JSON, JSONL, Parquet), folders, globs, or a Hub dataset "
        "owner/name."
    )
    out: str = Field("data/prepared", description="Folder to write.")
    out_format: Literal["jsonl", "parquet"] = Field("jsonl", description="Kind of tables to write.")
