"""The formats that an adapter can be exported to: one table, one signature.

To add a format: write a function `(adapter_dir, base_dir, out_dir, *, overwrite, dry_run,
on_progress, ...) -> ExportReport`, add its row here and its name in `ExportSettings.format`. Its
module is imported when the format is asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Literal, NamedTuple

from gptoss_tools.errors import ConfigError
from gptoss_tools.export.plan import Progress
from gptoss_tools.export.record import ExportReport
from gptoss_tools.models.names import is_gpt_oss, is_other_family


class Format(NamedTuple):
    """Where the function that writes a format lives, and which options of its own it takes."""

    module: str
    function: str
    options: tuple[str, ...] = ()


FORMATS = {
    "mxfp4": Format("merge", "export_mxfp4", ("requantize_experts",)),
    "bf16": Format("bf16", "export_bf16"),
    "gguf": Format("gguf", "export_gguf", ("dtype",)),
    "adapter": Format("gguf_lora", "export_adapter"),
    "merged": Format("merge", "export_merged"),
}

ANY_FAMILY = ("adapter", "merged")
"""Formats for models other than gpt-oss."""


def export(
    format: str,
    adapter_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    dtype: Literal["bf16", "f32"] = "bf16",
    requantize_experts: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Write base + adapter to `out_dir`; the folder appears whole or not at all.

    `auto` is the base's own layout; `dtype` is that of a GGUF's attention weights. Raises
    ConfigError or DataError for what cannot be exported so, RunFolderError for an `out_dir` in the
    way, GptossError where the disk is full.
    """
    other = is_other_family(base_dir)
    if format == "auto":
        format = "merged" if other else "mxfp4"
    if format not in FORMATS:
        raise ConfigError(f"format {format!r} is unknown", hint="use auto, " + ", ".join(FORMATS))
    chosen = FORMATS[format]
    if other and format not in ANY_FAMILY:
        raise ConfigError(
            f"{base_dir} is no gpt-oss, and --format {format} writes what only a gpt-oss has",
            hint="--format merged writes the whole model, --format adapter the adapter alone",
        )
    if format == "merged" and is_gpt_oss(base_dir):
        raise ConfigError(
            f"{base_dir} is a gpt-oss, whose experts are packed or not when they are merged",
            hint="--format mxfp4, as published, or --format bf16",
        )
    if requantize_experts and "requantize_experts" not in chosen.options:
        raise ConfigError(f"requantize_experts has no meaning for {format}", hint="leave it out")
    own = {"dtype": dtype, "requantize_experts": requantize_experts}
    write = getattr(importlib.import_module(f"{__package__}.{chosen.module}"), chosen.function)
    return write(
        adapter_dir,
        base_dir,
        out_dir,
        overwrite=overwrite,
        dry_run=dry_run,
        on_progress=on_progress,
        **{name: own[name] for name in chosen.options},
    )
