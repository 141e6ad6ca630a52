"""Merge a LoRA adapter into an MXFP4 checkpoint, from the files alone and without a model.

The base's files are copied byte for byte, but for the tensors that the adapter changes, which are
written at their places. Headers, offsets, index, tokenizer and config.json stay as they are (a
re-saved config loses keys that Ollama and vLLM read). Memory: pieces of 1 MB. LoRA on experts is
refused unless requantising them, with its loss, is asked for.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch

from gptoss_tools.core import mxfp4
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.export.changes import Change
from gptoss_tools.export.experts import ExpertChange, experts_of
from gptoss_tools.export.files import fill, require_room, share_or_reserve
from gptoss_tools.export.finish import finish
from gptoss_tools.export.plan import ExportPlan, Progress, check_out, plan_export, tell_nobody
from gptoss_tools.export.record import RECORD, ExportReport
from gptoss_tools.export.rounding import REQUANTISED, Sums, together
from gptoss_tools.export.safetensors_io import TensorRef

RULE: mxfp4.Rule = "best"
"""How experts are packed again. Relative to LoRA's change, on Gaussian and Student-t weights: of a
change of 1 % of the weights `best` keeps 0 with error 1.0, of 3 % 0.03 to 0.05 with 1.0, of 10 %
0.64 to 0.70 with 0.8. The other rules change scales where little else changes: error 3 to 9 at 1 %.
"""


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
    return _export(plan, "mxfp4", out_dir, overwrite, dry_run, on_progress, start)


def export_merged(
    adapter_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> ExportReport:
    """The same for a base that is no gpt-oss, in whichever types it stores its weights."""
    start = time.perf_counter()
    check_out(out_dir, (adapter_dir, base_dir), overwrite)
    plan = plan_export(adapter_dir, base_dir, gpt_oss=False)
    return _export(plan, "merged", out_dir, overwrite, dry_run, on_progress, start)


def _export(
    plan: ExportPlan,
    format: Literal["mxfp4", "merged"],
    out_dir: Path,
    overwrite: bool,
    dry_run: bool,
    on_progress: Progress | None,
    start: float,
) -> ExportReport:
    report = ExportReport(
        out=out_dir,
        format=format,
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
        _rewrite(plan, None, report, _Count(tell, "merge", plan.bytes_rewritten))
    else:
        with whole_folder(out_dir, replace=overwrite) as folder:
            _write(plan, folder, report, _Count(tell, "write", plan.bytes_total))
            finish(plan, folder, report, format)
    report.seconds = time.perf_counter() - start
    return report


class _Count:
    """Bytes that are in place, told together whichever thread put them there."""

    def __init__(self, tell: Progress, what: str, total: int) -> None:
        self.tell, self.what, self.total = tell, what, total
        self.done, self.lock, self.stopped = 0, threading.Lock(), False

    def add(self, size: int) -> None:
        """Count and tell. Raises InterruptedError once the other thread has failed."""
        with self.lock:
            if self.stopped:
                raise InterruptedError
            self.done += size
            self.tell(self.what, self.done, self.total)


def _write(plan: ExportPlan, folder: Path, report: ExportReport, count: _Count) -> None:
    """Copy what stays while a second thread merges what changes: no byte is written twice.

    Only where files are reflinks of the base's, changed bytes go over the shared ones.
    """
    ways, left = set(), []
    for path in plan.copies:
        shared = share_or_reserve(path, folder / path.name)
        ways |= {"reflink"} if shared and path in plan.base.shards else set()
        left += [] if shared else [path]
    holes: dict[Path, list[tuple[int, int]]] = {path: [] for path in plan.copies}
    for ref in (ref for change in (*plan.changes, *plan.experts) for ref in _stored(change)):
        holes[ref.path].append((ref.offset, ref.nbytes))
    require_room(folder / RECORD, sum(path.stat().st_size for path in left))
    with ThreadPoolExecutor(1) as pool:
        merging = pool.submit(_rewrite, plan, folder, report, count)

        def copied(size: int) -> None:
            if merging.done():
                merging.result()  # raises what it raised, before gigabytes are copied in vain
            count.add(size)

        try:
            for path in plan.copies:
                if path in left:
                    how = fill(path, folder / path.name, copied, holes[path])
                    ways |= {how} if path in plan.base.shards else set()
                else:
                    copied(path.stat().st_size - sum(size for _, size in holes[path]))
            merging.result()
        except BaseException:
            count.stopped = True
            raise
    report.copied_by = ", ".join(sorted(ways))


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


def _stored(change: Change | ExpertChange) -> tuple[TensorRef, ...]:
    """The tensors of the base's files that a change rewrites, each from end to end."""
    return change.base.stored if isinstance(change, ExpertChange) else (change.base,)


def _rewrite(plan: ExportPlan, folder: Path | None, report: ExportReport, count: _Count) -> None:
    for change in (*plan.changes, *plan.experts):
        sums = Sums()
        with ExitStack() as stack:
            places = _Places(folder, _stored(change), stack)
            for ref, values in _pieces(change, sums):
                places.write(ref, values)
        kind = REQUANTISED if isinstance(change, ExpertChange) else change.kind
        report.tensors.append(sums.rounding(change.base.name, kind, places.digests()))
        count.add(change.base.nbytes)
    report.conclude()
    experts = [one for one in report.tensors if one.kind == REQUANTISED]
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
    """Rows of blocks, then of scales; a block whose values come out as they were keeps both."""
    blocks_ref, scales_ref = change.base.stored
    old = change.base.packed_bytes(0)
    for expert, rows, stored, merged in change.merged():
        if not bool(torch.isfinite(merged).all()):
            raise DataError(f"merging {change.base.name} gives NaN or infinity")
        blocks, scales = mxfp4.encode(merged, RULE)
        rounded = mxfp4.decode(blocks, scales, torch.float32)
        measure(sums, blocks_ref, stored, merged, rounded)
        if rows.start == 0:
            old = change.base.packed_bytes(expert)
        same = (rounded == stored).view(*scales.shape, mxfp4.BLOCK).all(-1)
        yield blocks_ref, torch.where(same[..., None], old[0][rows], blocks)
        yield scales_ref, torch.where(same, old[1][rows], scales)


def measure(
    sums: Sums, ref: TensorRef, stored: torch.Tensor, merged: torch.Tensor, rounded: torch.Tensor
) -> None:
    """Add a piece to the sums. Raises DataError where merging left the range of the stored type."""
    sums.add(stored, merged, rounded)
    if not math.isfinite(sums.kept + sums.error):  # NaN and infinity reach the sums
        raise DataError(f"merging {ref.name} gives NaN or values too large for {ref.kind}")
