"""Write base + adapter as a checkpoint without MXFP4: experts dequantised, one at a time.

`model.layers.N.mlp.experts.gate_up_proj` is [E, in, out] with gate and up columns interleaved,
`down_proj` [E, in, out], the biases keep their names and shapes: the parameters of transformers'
GptOssExperts (5.23, modeling_gpt_oss.py), which `from_pretrained` fills by name where config.json
has no quantization_config. vLLM's loader for gpt-oss without MXFP4 (GptOssModel._load_weights_other
at a6b6cfa) takes the same names and transposes both to its [E, out, in]; `down_proj` is square in
the published models, so nothing would notice the other orientation. MXFP4 values are bfloat16
values: dequantising rounds nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_tools.core import mxfp4
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.export.changes import Change
from gptoss_tools.export.experts import ExpertChange, Experts, experts_of
from gptoss_tools.export.files import copy_file, disk_full
from gptoss_tools.export.finish import finish
from gptoss_tools.export.merge import measure
from gptoss_tools.export.plan import ExportPlan, Progress, check_out, plan_export, tell_nobody
from gptoss_tools.export.record import ExportReport
from gptoss_tools.export.rounding import Sums
from gptoss_tools.export.safetensors_io import INDEX, TensorRef, header_bytes, read_object
from gptoss_tools.export.threads import one_thread

LARGEST_SHARD = 5_000_000_000
"""Bytes of tensors per file, as the Hub's own libraries split."""
CONFIG = "config.json"
_PIECE = 16 << 20


@dataclass(frozen=True)
class Output:
    """One tensor of the new checkpoint, and where it comes from."""

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    source: TensorRef | Experts
    change: Change | ExpertChange | None = None

    def pieces(self, sums: Sums) -> Iterator[np.ndarray]:
        """Its bytes in order; a change is measured on the way."""
        if isinstance(self.source, Experts):
            yield from map(_bytes, self._experts(self.source, sums))
        elif isinstance(self.change, Change):
            for _, stored, merged in self.change.merged():
                rounded = merged.to(stored.dtype)
                measure(sums, self.source, stored, merged, rounded)
                yield _bytes(rounded)
        else:
            for first in range(0, self.nbytes, _PIECE):
                yield self.source.read_bytes(first, first + _PIECE)

    def _experts(self, source: Experts, sums: Sums) -> Iterator[torch.Tensor]:
        """One expert [in, out] after the other, all in the same memory."""
        count, out, inputs = source.shape
        values = torch.empty(out, inputs, dtype=torch.bfloat16)
        turned = torch.empty(inputs, out, dtype=torch.bfloat16)
        with one_thread():
            for rows, piece in self._rows(source, count, sums):
                values[rows] = piece
                if rows.stop == out:
                    yield turned.copy_(values.T)

    def _rows(
        self, source: Experts, count: int, sums: Sums
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of one expert's [out, in] after the other's, rounded to bfloat16."""
        if not isinstance(self.change, ExpertChange):
            for expert in range(count):
                yield from source.pieces(expert, torch.bfloat16)
            return
        for _, rows, stored, merged in self.change.merged():
            rounded = merged.to(torch.bfloat16)
            measure(sums, source.stored[0], stored, merged, rounded)
            yield rows, rounded


def export_bf16(
    adapter_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Write base + adapter to `out_dir` with experts in bfloat16, LoRA on experts included.

    Each changed tensor is merged in float32 and rounded once; every other value is the base's own.
    Memory: one expert in bfloat16, twice. Measured on gpt-oss-20b's shapes: 435 MB resident with
    LoRA on experts, about half of it torch itself. Raises RunFolderError for an `out_dir` in the
    way, DataError and ConfigError for input that does not fit, GptossError where the disk is full.
    """
    start = time.perf_counter()
    check_out(out_dir, (adapter_dir, base_dir), overwrite)
    plan = plan_export(adapter_dir, base_dir, experts=True)
    outputs = plan_outputs(plan)
    changed = [output for output in outputs if output.change is not None]
    report = ExportReport(
        out=out_dir,
        format="bf16",
        base_name=plan.base_name,
        written=not dry_run,
        tensors=[],
        ratio=0.0,
        kept=1.0,
        bytes_total=sum(output.nbytes for output in outputs),
        bytes_rewritten=sum(output.nbytes for output in changed),
    )
    tell = on_progress or tell_nobody
    if dry_run:
        done = 0
        for output in changed:
            for piece in _told(output, report):
                done += piece.nbytes
                tell("merge", done, report.bytes_rewritten)
        report.conclude()
    else:
        with whole_folder(out_dir, replace=overwrite) as folder:
            _write(plan, outputs, folder, report, tell)
            report.conclude()
            finish(plan, folder, report, "bf16")
    report.seconds = time.perf_counter() - start
    return report


def plan_outputs(plan: ExportPlan) -> list[Output]:
    """Every tensor of the new checkpoint, in the base's file order."""
    experts = experts_of(plan.base)
    changes = {change.base.name: change for change in (*plan.changes, *plan.experts)}
    outputs: dict[str, Output] = {}
    for ref in sorted(plan.base.tensors.values(), key=lambda ref: (ref.path, ref.offset)):
        name = mxfp4.parameter_name(ref.name)
        if name in outputs:
            continue
        if name in experts:
            count, out, inputs = experts[name].shape
            size = 2 * count * out * inputs
            shape = (count, inputs, out)
            outputs[name] = Output(name, "BF16", shape, size, experts[name], changes.get(name))
        else:
            outputs[name] = Output(name, ref.kind, ref.shape, ref.nbytes, ref, changes.get(name))
    return list(outputs.values())


def split(outputs: Sequence[Output], largest: int) -> list[list[Output]]:
    """Fill shards in order; a tensor larger than a shard gets one of its own."""
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.nbytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.nbytes
    return shards


def _write(
    plan: ExportPlan, outputs: list[Output], folder: Path, report: ExportReport, tell: Progress
) -> None:
    total = report.bytes_total
    free = shutil.disk_usage(folder).free
    if free < total:
        raise disk_full(folder, total, free)
    done = 0
    weight_map: dict[str, str] = {}
    shards = split(outputs, LARGEST_SHARD)
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with path.open("wb") as file:
            file.write(header_bytes([(one.name, one.kind, one.shape, one.nbytes) for one in shard]))
            for output in shard:
                weight_map[output.name] = path.name
                for piece in _told(output, report):
                    file.write(piece.data)
                    done += piece.nbytes
                    tell("write", done, total)
    for path in plan.extra:
        if path.name != CONFIG:
            copy_file(path, folder / path.name, lambda size: None)
    _write_json(folder / CONFIG, plain_config(plan.base.folder / CONFIG))
    # The index comes last, so a folder that was cut off does not even look like a checkpoint.
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX, index)


def _told(output: Output, report: ExportReport) -> Iterator[np.ndarray]:
    """The bytes of one tensor; afterwards the report knows how a change was rounded."""
    sums, digest = Sums(), hashlib.sha256()
    for piece in output.pieces(sums):
        if output.change is not None:
            digest.update(piece.data)
        yield piece
    if output.change is not None:
        hashes = {output.name: digest.hexdigest()}
        report.tensors.append(sums.rounding(output.name, output.change.kind, hashes))


def plain_config(path: Path) -> dict[str, Any]:
    """The base's config.json without quantization_config; every other key as published."""
    config = read_object(path)
    config.pop("quantization_config", None)
    return config


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _bytes(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().view(torch.uint8).numpy().reshape(-1)
