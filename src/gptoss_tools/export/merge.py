"""Merge a LoRA adapter into an MXFP4 checkpoint, from the files alone and without a model.

The base's files are copied byte for byte; then only the tensors that the adapter changes are
rewritten at their places. Headers, offsets, index, tokenizer and config.json stay as they are (a
re-saved config loses keys that Ollama and vLLM read). Memory: about one tensor. LoRA on experts is
refused unless requantising them, with its loss, is asked for.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from gptoss_tools.core import mxfp4
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.export.changes import Change
from gptoss_tools.export.experts import ExpertChange, experts_of
from gptoss_tools.export.files import copy_file, disk_full
from gptoss_tools.export.finish import finish
from gptoss_tools.export.plan import ExportPlan, Progress, check_out, plan_export, tell_nobody
from gptoss_tools.export.record import ExportReport
from gptoss_tools.export.rounding import Sums, together
from gptoss_tools.export.safetensors_io import TensorRef

RULE: mxfp4.Rule = "best"
"""How experts are packed again: of the rules measured, the one that injects the least error."""


def export_mxfp4(
    adapter_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    requantize_experts: bool = False,
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
    plan = plan_export(adapter_dir, base_dir, experts=requantize_experts)
    packed = [experts.packed for experts in experts_of(plan.base).values()]
    if not packed or not all(packed):
        raise ConfigError(f"{base_dir} holds no MXFP4 experts", hint="use --format bf16")
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
            finish(plan, folder, report, "mxfp4")
    report.seconds = time.perf_counter() - start
    return report


def _copy(plan: ExportPlan, folder: Path, tell: Progress) -> str:
    done, ways, total = 0, set(), plan.bytes_total

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell("copy", done, total)

    for path in plan.copies:
        how = copy_file(path, folder / path.name, count)
        if path in plan.base.shards:
            ways.add(how)
        if "reflink" not in ways:
            _check_room(folder, total - done)
    return ", ".join(sorted(ways))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise disk_full(folder, needed, free)


class _Places:
    """Where rewritten bytes go in the copied shards; without a folder they are only hashed."""

    def __init__(self, folder: Path | None, refs: tuple[TensorRef, ...], stack: ExitStack) -> None:
        self.hashes = {ref.name: hashlib.sha256() for ref in refs}
        self.files: dict[str, BinaryIO] = {}
        if folder is None:
            return
        for ref in refs:
            file = stack.enter_context((folder / ref.path.name).open("r+b"))
            file.seek(ref.offset)
            self.files[ref.name] = file

    def write(self, ref: TensorRef, values: torch.Tensor) -> None:
        """Append rows of a tensor, in order."""
        data: np.ndarray = values.contiguous().view(torch.uint8).numpy()
        self.hashes[ref.name].update(data.data)
        if ref.name in self.files:
            self.files[ref.name].write(data.data)

    def digests(self) -> dict[str, str]:
        """SHA-256 of what was written, by tensor."""
        return {name: found.hexdigest() for name, found in self.hashes.items()}


def _rewrite(plan: ExportPlan, folder: Path | None, report: ExportReport, tell: Progress) -> None:
    done = 0
    for change in (*plan.changes, *plan.experts):
        refs = change.base.stored if isinstance(change, ExpertChange) else (change.base,)
        sums = Sums()
        with ExitStack() as stack:
            places = _Places(folder, refs, stack)
            for ref, values in _pieces(change, sums):
                places.write(ref, values)
        report.tensors.append(sums.rounding(change.base.name, change.kind, places.digests()))
        done += change.base.nbytes
        tell("merge", done, plan.bytes_rewritten)
    report.conclude()
    experts = [one for one in report.tensors if one.kind == "experts"]
    if experts:
        loss = together("experts", experts)
        report.warnings.append(
            f"the experts' change ({loss.ratio:.2%} of their weights) was packed into MXFP4 again, "
            f"which keeps {loss.kept:.0%} of it and adds an error of {loss.error:.2f} times its "
            "size; evaluate this export, or serve the adapter unmerged or in bf16"
        )


def _pieces(change: Change | ExpertChange, sums: Sums) -> Iterator[tuple[TensorRef, torch.Tensor]]:
    return _packed(change, sums) if isinstance(change, ExpertChange) else _rounded(change, sums)


def _rounded(change: Change, sums: Sums) -> Iterator[tuple[TensorRef, torch.Tensor]]:
    for _, stored, merged in change.merged():
        rounded = merged.to(stored.dtype)
        measure(sums, change.base, stored, merged, rounded)
        yield change.base, rounded


def _packed(change: ExpertChange, sums: Sums) -> Iterator[tuple[TensorRef, torch.Tensor]]:
    """Blocks, then scales of each expert; a block whose values come out as they were keeps both."""
    blocks_ref, scales_ref = change.base.stored
    for expert, stored, merged in change.merged():
        if not bool(torch.isfinite(merged).all()):
            raise DataError(f"merging {change.base.name} gives NaN or infinity")
        blocks, scales = mxfp4.encode(merged, RULE)
        rounded = mxfp4.decode(blocks, scales, torch.float32)
        measure(sums, blocks_ref, stored, merged, rounded)
        same = (rounded == stored).view(*scales.shape, mxfp4.BLOCK).all(-1)
        old_blocks, old_scales = (ref.read(expert, expert + 1)[0] for ref in change.base.stored)
        yield blocks_ref, torch.where(same[..., None], old_blocks, blocks)
        yield scales_ref, torch.where(same, old_scales, scales)


def measure(
    sums: Sums, ref: TensorRef, stored: torch.Tensor, merged: torch.Tensor, rounded: torch.Tensor
) -> None:
    """Add a piece to the sums. Raises DataError where merging left the range of the stored type."""
    sums.add(stored, merged, rounded)
    if not math.isfinite(sums.kept + sums.error):  # NaN and infinity reach the sums
        raise DataError(f"merging {ref.name} gives values too large for {ref.kind}")
