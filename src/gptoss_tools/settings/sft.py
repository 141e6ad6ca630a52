"""train-sft: supervised training on instructions and their answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gptoss_tools.settings.groups import (
    HubDataSettings,
    ModelSettings,
    Paths,
    Positive,
    PromptSettings,
    TableSettings,
)
from gptoss_tools.settings.remote import RemoteSettings
from gptoss_tools.settings.training import (
    AdapterSettings,
    HeldOutSettings,
    LoggingSettings,
    OptimizerSettings,
    RunSettings,
)


class SftSettings(
    RemoteSettings,
    RunSettings,
    HeldOutSettings,
    LoggingSettings,
    OptimizerSettings,
    AdapterSettings,
    ModelSettings,
    PromptSettings,
    HubDataSettings,
    TableSettings,
):
    """train-sft."""

    data: Paths = Field(
        ["data/train"],
        description="Files (CSV, JSON, JSONL, Parquet), folders or globs, or a Hub dataset "
        "owner/name.",
    )
    data_format: Literal[
        "auto", "alpaca", "messages", "prompt-completion", "prompts", "decisions"
    ] = Field("auto", description="What the columns hold (auto: told by their names; docs/sft.md).")
    turns: Literal["all", "last"] = Field(
        "all", description="Learn every answer of a conversation, or its last one."
    )
    max_examples: Positive | None = Field(
        None, description="Train on this many examples, drawn at random (default: all)."
    )
    prompt_template: str = Field(
        "auto",
        description="chat (the model's own), alpaca, moe_peft, plain, or a JSON file; auto: chat "
        "where the model has one, else alpaca.",
    )
    completion_only_loss: bool = Field(
        True, description="Learn the answers only, not the prompts before them."
    )
    max_length: Positive = Field(
        1024, description="Longest example, in tokens: what is beyond is cut off."
    )
    long_prompts: Literal["error", "drop"] = Field(
        "error",
        description="What to do with a longer prompt: stop, or leave the row out and count.",
    )
    num_train_epochs: Annotated[float, Field(gt=0)] = Field(
        3.0, description="Passes over the data."
    )
    max_steps: Positive | None = Field(  # type: ignore[assignment]
        None, description="Optimizer steps (default: num_train_epochs passes)."
    )
    per_device_train_batch_size: Positive = Field(
        4, description="Examples per micro-step and process."
    )
    gradient_accumulation_steps: Positive = Field(4, description="Micro-steps per optimizer step.")
