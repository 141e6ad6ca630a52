"""Merge a LoRA adapter into a gpt-oss checkpoint, from the files alone and without a model.

The base's files are copied byte for byte; then only the tensors that the adapter changes are
rewritten at their places. Headers, offsets, index, tokenizer and config.json stay as they are (a
re-saved config loses keys that Ollama and vLLM read). Memory: about one tensor. Other formats and
expert adapters are not here.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch

from gptoss_tools.core.publish import sync
from gptoss_tools.errors import DataError
from gptoss_tools.export import adapter as adapters
from gptoss_tools.export.files import copy_file, disk_full, whole_folder
from gptoss_tools.export.plan import ExportPlan, Progress, check_out, plan_export, tell_nobody
from gptoss_tools.export.record import ExportReport, write_record
from gptoss_tools.export.rounding import Sums, warnings_about


def export_mxfp4(
    adapter_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Write base + adapter to `out_dir`, in the base's own layout (MXFP4 experts untouched).

    Each changed tensor is W + scale * B @ A in float32, rounded once to the stored type. The
    folder appears complete or not at all, and a repeated call starts afresh. Raises RunFolderError
    for an `out_dir` in the way, DataError and ConfigError for input that does not fit.
    """
    start = time.perf_counter()
    check_out(out_dir, (adapter_dir, base_dir), overwrite)
    plan = plan_export(adapter_dir, base_dir)
    report = ExportReport(
        out=out_dir,
        format="mxfp4",
        base_name=plan.base_name,
        written=not dry_run,
        tensors=[],
        ratio=0.0,
        kept=1.0,
        bytes_total=plan.bytes_total,
        bytes_rewritten=plan.bytes_rewritten,
    )
    tell = on_progress or tell_nobody
    if dry_run:
        _rewrite(plan, None, report, tell)
    else:
        with whole_folder(out_dir, replace=overwrite) as folder:
            report.copied_by = _copy(plan, folder, tell)
            _rewrite(plan, folder, report, tell)
            write_record(adapter_dir, folder, report)
            for path in folder.iterdir():
                sync(path)
    report.seconds = time.perf_counter() - start
    return report


def _copy(plan: ExportPlan, folder: Path, tell: Progress) -> str:
    done, ways = 0, set()

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell("copy", done, plan.bytes_total)

    for path in plan.copies:
        how = copy_file(path, folder / path.name, count)
        if path in plan.base.shards:
            ways.add(how)
        if "reflink" not in ways:
            _check_room(folder, plan.bytes_total - done)
    return ", ".join(sorted(ways))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise disk_full(folder, needed, free)


def _rewrite(plan: ExportPlan, folder: Path | None, report: ExportReport, tell: Progress) -> None:
    done, total = 0, Sums()
    for change in plan.changes:
        sums = Sums()
        if folder is None:
            _merge_one(change, None, sums)
        else:
            with (folder / change.base.path.name).open("r+b") as file:
                _merge_one(change, file, sums)
        report.tensors.append(sums.rounding(change.base.name, change.kind))
        for key, value in asdict(sums).items():
            setattr(total, key, getattr(total, key) + value)
        done += change.base.nbytes
        tell("merge", done, plan.bytes_rewritten)
    whole = total.rounding("all", "all")
    report.ratio, report.kept = whole.ratio, whole.kept
    report.warnings += warnings_about(whole)


def _merge_one(change: adapters.Change, file: BinaryIO | None, sums: Sums) -> None:
    base = change.base
    for first, stored, merged in change.merged():
        rounded = merged.to(stored.dtype)
        sums.add(stored, merged, rounded)
        if not math.isfinite(sums.kept + sums.error):  # NaN and infinity reach the sums
            raise DataError(f"merging {base.name} gives values too large for {base.kind}")
        if file is not None:
            file.seek(base.offset + first * (base.nbytes // base.shape[0]))
            file.write(rounded.contiguous().view(torch.uint8).numpy().data)
