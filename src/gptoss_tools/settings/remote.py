"""Where a command runs: here, or on a machine of Modal."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from gptoss_tools.errors import ConfigError
from gptoss_tools.settings.groups import Positive, Settings


class RemoteSettings(Settings):
    """Running a command on Modal."""

    modal: bool = Field(False, description="Run on a GPU at Modal (docs/modal.md), not here.")
    gpu: str = Field("H100", description="GPU at Modal: H100, H200, A100-80GB, or H100:8 for 8.")
    nodes: Positive = Field(1, description="Machines at Modal that train together.")
    detach: bool = Field(False, description="Start on Modal and do not wait for the end.")
    modal_secrets: list[str] = Field(
        [],
        description="Secrets at Modal that the command gets (default: huggingface-secret and "
        "wandb-secret, where they exist).",
    )

    @field_validator("gpu")
    @classmethod
    def _a_gpu(cls, gpu: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9-]*!?(:[1-9]\d?)?", gpu.upper()):
            raise ConfigError(
                "not a GPU of the form H100, A100-80GB or H100:8", "Modal's own name, and how many"
            )
        return gpu.upper()

    @model_validator(mode="after")
    def _whole_machines(self) -> RemoteSettings:
        if self.nodes > 1 and ":" not in self.gpu:
            raise ConfigError(
                f"nodes = {self.nodes} needs all GPUs of each machine", f"--gpu {self.gpu}:8"
            )
        return self
