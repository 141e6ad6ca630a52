"""The settings of `gptoss pipeline`; its stages read their own from the same file and variables."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gptoss_tools.errors import ConfigError
from gptoss_tools.settings.groups import DryRunSettings, Paths, Positive
from gptoss_tools.settings.remote import RemoteSettings


class PipelineSettings(RemoteSettings, DryRunSettings):
    """pipeline."""

    out: str = Field("runs/pipeline", description="Folder for everything the pipeline writes.")
    data: Paths = Field(["data/train"], description="Tables: files, folders or globs.")
    eval_data: Paths = Field(
        ["data/heldout"], description="Held-out tables: files, folders or globs."
    )
    training: Literal["train-grpo", "train-sft", "pretrain"] = Field(
        "train-grpo", description="The command that trains."
    )
    model: str = Field(
        "openai/gpt-oss-20b",
        description="Base model: a Hub id, a folder, or `tiny` (built here, no Hub, no GPU).",
    )
    max_steps: Positive | None = Field(
        None, description="Optimizer steps (default: what the training command says)."
    )
    push: bool = Field(False, description="Upload the export to the Hub (needs HF_TOKEN).")
    repo_id: str | None = Field(None, description="Hub repository, user/name.")

    @model_validator(mode="after")
    def _waits(self) -> PipelineSettings:
        if self.detach:
            raise ConfigError("a pipeline waits for its stages", "leave out `detach`")
        return self
