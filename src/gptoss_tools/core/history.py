"""Files that only grow: lines appended whole, and metrics.jsonl read back.

Imports nothing heavy: `gptoss runs` and reports read histories without loading a model's libraries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records that count, one per step: those a later segment did again are dropped.

    Lines of one step and segment (training and evaluation) are one record. Lines that a kill cut
    off are skipped; a missing file is an empty list.
    """
    kept: list[dict[str, Any]] = []
    if not path.exists():
        return kept
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
                step = int(record["step"])
            except (ValueError, KeyError, TypeError):
                continue
            if kept and _place(kept[-1]) == _place(record):
                kept[-1].update(record)
                continue
            while kept and kept[-1]["step"] >= step:
                kept.pop()
            kept.append(record)
    return kept


def invalid_share(record: Mapping[str, Any]) -> float | None:
    """Return the share of completions that were no action, from a metrics record."""
    return record.get("invalid_share")


def _place(record: Mapping[str, Any]) -> tuple[int, Any]:
    return int(record["step"]), record.get("segment")


def append(path: Path, text: str) -> None:
    """Append `text` in one go, so that lines of two writers cannot mix."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = memoryview(text.encode("utf-8", errors="replace"))
        while data:
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)
