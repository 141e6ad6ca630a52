"""Export an adapter unmerged: the PEFT folder, and the same as a GGUF LoRA for llama.cpp.

Nothing is rounded. LoRA on attention and on experts becomes a GGUF; what llama.cpp's adapters have
no words for (DoRA, trained biases, whole trained modules) stays in the PEFT files alone, and the
report says so.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, Keys

from gptoss_tools.core.publish import write_json
from gptoss_tools.core.runs import open_run
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.export import adapter as adapters
from gptoss_tools.export.changes import CHUNK, Change
from gptoss_tools.export.experts import ExpertChange
from gptoss_tools.export.files import copy_file
from gptoss_tools.export.gguf_layout import ARCHITECTURE, Dimensions, GgufTensor, read_config
from gptoss_tools.export.modelfile import served_name
from gptoss_tools.export.plan import Progress, check_out, name_of, tell_nobody
from gptoss_tools.export.record import ExportReport, write_record
from gptoss_tools.export.safetensors_io import TensorRef, open_checkpoint
from gptoss_tools.export.serving import ADAPTER, write_serving
from gptoss_tools.models.names import is_other_family


def export_adapter(
    adapter_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Write the adapter's PEFT files, adapter.gguf, SERVING.md and export.json to `out_dir`.

    A base model's path in adapter_config.json becomes its name. The folder appears complete or not
    at all. Raises RunFolderError for an `out_dir` in the way, DataError and ConfigError for an
    adapter that is damaged or does not belong to the base.
    """
    start = time.perf_counter()
    check_out(out_dir, (adapter_dir, base_dir), overwrite)
    changes = adapters.read_adapter(adapter_dir, open_checkpoint(base_dir))
    if is_other_family(base_dir):
        pairs, lacking = [], ["the names of another family's tensors are not known here"]
    else:
        pairs = list(_pairs(changes, Dimensions.from_config(read_config(base_dir)).table()))
        lacking = sorted({reason for change in changes.plain if (reason := _lacking(change))})
    weights = adapter_dir / adapters.WEIGHTS
    report = ExportReport(
        out=out_dir,
        format="adapter",
        base_name=name_of(base_dir, adapter_dir),
        written=not dry_run,
        tensors=[],
        ratio=0.0,
        kept=1.0,
        bytes_total=weights.stat().st_size,
        bytes_rewritten=0,
    )
    if lacking:
        report.warnings.append(f"no {ADAPTER} for llama.cpp: {'; '.join(lacking)}")
    tell = on_progress or tell_nobody
    if not dry_run:
        with whole_folder(out_dir, replace=overwrite) as folder:
            done = 0

            def count(size: int) -> None:
                nonlocal done
                done += size
                tell("copy", done, report.bytes_total)

            report.copied_by = copy_file(weights, folder / weights.name, count)
            write_json(folder / adapters.CONFIG, _portable_config(adapter_dir, report.base_name))
            if not lacking:
                # An alpha of 0 would mean "no scale" to llama.cpp.
                alpha = float(adapters.read_config(adapter_dir).get("lora_alpha") or 1)
                _write_lora(folder / ADAPTER, served_name(adapter_dir), pairs, alpha)
                report.bytes_total += (folder / ADAPTER).stat().st_size
            write_serving(
                folder,
                format="adapter",
                base_name=report.base_name,
                adapter_dir=adapter_dir,
                base_dir=base_dir,
            )
            write_record(adapter_dir, folder, report)
    report.seconds = time.perf_counter() - start
    return report


def _lacking(change: Change) -> str | None:
    """Why a change is no GGUF LoRA, None where it is one."""
    if change.magnitude is not None:
        return "DoRA rescales the merged weights"
    if change.a is None:
        return f"a trained {change.base.name.rsplit('.', 1)[-1]} is no product of two matrices"
    # PEFT saves lm_head below its LoRA whether it was trained or not.
    if change.new is not None and not _equal(change.base, change.new):
        return "the weight below a LoRA was trained too"
    return None


def _equal(one: TensorRef, other: TensorRef) -> bool:
    pieces = ((one.read(*rows), other.read(*rows)) for rows in one.pieces(CHUNK))
    return all(torch.equal(a.float(), b.float()) for a, b in pieces)


def _portable_config(adapter_dir: Path, base_name: str) -> dict[str, Any]:
    """adapter_config.json with the base as the run called it, where it holds a path."""
    config = adapters.read_config(adapter_dir)
    if Path(config.get("base_model_name_or_path") or "/").is_absolute():
        word = str(open_run(adapter_dir).settings.get("model") or base_name)
        config["base_model_name_or_path"] = base_name if Path(word).is_absolute() else word
    return config


class _Pair(NamedTuple):
    """One GGUF tensor and the LoRA on it: A [r, in] and B [out, r], experts as the first axis."""

    tensor: GgufTensor
    change: Change | ExpertChange
    a: TensorRef
    b: TensorRef

    @property
    def rank(self) -> int:
        return self.a.shape[0] // (self.tensor.shape[0] if len(self.tensor.shape) == 3 else 1)

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        *experts, out, inputs = self.tensor.shape
        return (*experts, self.rank, inputs), (*experts, out, self.rank)

    def matrices(self, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B in float32, B such that alpha / r is all that is missing of the scale."""
        a, b = self.a.read().float(), self.b.read().float()
        if isinstance(self.change, ExpertChange):
            first, step = self.tensor.part
            a = a.reshape(self.shapes()[0])
            b = b.reshape(b.shape[0], self.rank, -1).permute(2, 0, 1)[:, first::step]
        return a, b * (self.change.scale * self.rank / alpha)


def _pairs(changes: adapters.Changes, table: list[GgufTensor]) -> Iterator[_Pair]:
    """Every LoRA with the GGUF tensors it is for: one on gate_up_proj is for two."""
    sources: dict[str, list[GgufTensor]] = {}
    for tensor in table:
        sources.setdefault(tensor.source, []).append(tensor)
    for change in (*changes.plain, *changes.experts):
        for tensor in sources.get(change.base.name, ()):
            if change.a is not None and change.b is not None:
                yield _Pair(tensor, change, change.a, change.b)


def _write_lora(path: Path, name: str, pairs: list[_Pair], alpha: float) -> None:
    writer = GGUFWriter(None, ARCHITECTURE)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    single = np.dtype(np.float32)
    for pair in pairs:
        for suffix, shape in zip(("lora_a", "lora_b"), pair.shapes(), strict=True):
            size = math.prod(shape) * single.itemsize
            writer.add_tensor_info(f"{pair.tensor.name}.{suffix}", shape, single, size)
    with contextlib.closing(writer):
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for pair in pairs:
            for matrix in pair.matrices(alpha):
                writer.write_tensor_data(matrix.contiguous().numpy())
