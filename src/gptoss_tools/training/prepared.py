"""What is known of a run before a weight loads; each way to train adds what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The checked settings, the data and the tokenizer.

    `model` is resolved; `rows` counts what was read, `dropped` what was left out of it; `origins`
    say where each setting comes from, `command` is the command line.
    """

    settings: Any
    rows: int
    data_hash: str
    tokenizer: PreTrainedTokenizerBase
    model: str
    base_hash: str | None
    world_size: int
    is_main: bool
    dropped: int = 0
    notes: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    command: str | None = None

    def facts(self) -> dict[str, Any]:
        """What config.json keeps beside the settings, in JSON's types."""
        return {}
