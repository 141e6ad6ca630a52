"""Write base + adapter as one GGUF for llama.cpp and Ollama, in one pass and little memory.

The MXFP4 experts keep their values to the bit, repacked into GGML's order; attention is merged and
rounded once, or kept in float32. Beside it stand a Modelfile and SERVING.md. Checking a finished
file is `gguf_verify`'s affair, adapters alone are `gguf_lora`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from gguf import GGUFWriter

from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.export.files import disk_full
from gptoss_tools.export.gguf_layout import ARCHITECTURE, Dimensions, read_config
from gptoss_tools.export.gguf_metadata import add_metadata, add_sampling
from gptoss_tools.export.gguf_tensors import Planned, plan_tensors
from gptoss_tools.export.gguf_tokenizer import add_tokenizer
from gptoss_tools.export.gguf_verify import verify_gguf
from gptoss_tools.export.modelfile import served_name, write_modelfile
from gptoss_tools.export.plan import Progress, check_out, plan_export, tell_nobody
from gptoss_tools.export.prompt_form import training_form
from gptoss_tools.export.record import ExportReport, write_record
from gptoss_tools.export.rounding import Sums
from gptoss_tools.export.serving import write_serving

__all__ = ["MODEL", "export_gguf", "verify_gguf"]

MODEL = "model.gguf"


def export_gguf(
    adapter_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    dtype: Literal["bf16", "f32"] = "bf16",
    overwrite: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Write model.gguf, Modelfile, SERVING.md and export.json to `out_dir`.

    `bf16` gives the values of the mxfp4 export; `f32` keeps attention weights and whatever else the
    adapter changes unrounded. The folder appears complete or not at all. Raises RunFolderError for
    an `out_dir` in the way, DataError and ConfigError for input that does not fit.
    """
    start = time.perf_counter()
    if dtype not in ("bf16", "f32"):
        raise ConfigError(f"gguf_dtype {dtype!r} is unknown", hint="use bf16 or f32")
    check_out(out_dir, (adapter_dir, base_dir), overwrite)
    plan = plan_export(adapter_dir, base_dir)
    config = read_config(base_dir)
    changes = {change.base.name: change for change in plan.changes}
    planned = plan_tensors(Dimensions.from_config(config), plan.base, changes, exact=dtype == "f32")
    report = ExportReport(
        out=out_dir,
        format="gguf",
        base_name=plan.base_name,
        written=not dry_run,
        tensors=[],
        ratio=0.0,
        kept=1.0,
        bytes_total=sum(one.nbytes for one in planned),
        bytes_rewritten=sum(one.nbytes for one in planned if one.change is not None),
    )
    job = _Job(planned, report, on_progress or tell_nobody)
    if dry_run:
        for one in planned:
            if one.change is not None:
                for _ in job.pieces(one):
                    pass
        report.conclude()
    else:
        form = training_form(adapter_dir)
        with whole_folder(out_dir, replace=overwrite) as folder:
            writer = GGUFWriter(None, ARCHITECTURE)
            for one in planned:
                writer.add_tensor_info(
                    one.tensor.name, one.tensor.shape, np.dtype(np.float32), one.nbytes, one.kind
                )
            add_metadata(writer, config, out_dir.resolve().name)
            add_sampling(writer, form.settings)
            add_tokenizer(writer, base_dir, config["vocab_size"])
            job.write(writer, folder / MODEL)
            report.conclude()
            report.bytes_total = (folder / MODEL).stat().st_size
            write_modelfile(folder, form, served_name(adapter_dir))
            write_serving(
                folder,
                format="gguf",
                base_name=plan.base_name,
                adapter_dir=adapter_dir,
                base_dir=base_dir,
            )
            write_record(adapter_dir, folder, report)
    report.seconds = time.perf_counter() - start
    return report


class _Pieces:
    """What GGUFWriter writes as a tensor, without ever being one in memory."""

    def __init__(self, nbytes: int, pieces: Iterator[np.ndarray]) -> None:
        self.nbytes, self.pieces = nbytes, pieces

    def tofile(self, file: BinaryIO) -> None:
        written = sum(file.write(piece.reshape(-1).data) for piece in self.pieces)
        if written != self.nbytes:
            raise DataError(f"a tensor has {written} bytes where {self.nbytes} were announced")


class _Job:
    """Progress and rounding of one export, over all its tensors."""

    def __init__(self, planned: list[Planned], report: ExportReport, tell: Progress) -> None:
        self.planned, self.report, self.tell = planned, report, tell
        self.done, self.total = 0, report.bytes_total if report.written else report.bytes_rewritten

    def write(self, writer: GGUFWriter, path: Path) -> None:
        """Write header and tensors. Raises GptossError where the disk is too small."""
        free = shutil.disk_usage(path.parent).free
        if free < self.total:
            raise disk_full(path, self.total, free)
        with contextlib.closing(writer):
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for one in self.planned:
                tensor: Any = _Pieces(one.nbytes, self.pieces(one))
                writer.write_tensor_data(cast(np.ndarray, tensor))

    def pieces(self, one: Planned) -> Iterator[np.ndarray]:
        """The bytes of one tensor; afterwards the report knows how a change was rounded."""
        sums, digest = Sums(), hashlib.sha256()
        for piece in one.pieces(sums):
            if one.change is not None:
                digest.update(piece.data)
            yield piece
            self.done += piece.nbytes
            self.tell("write" if self.report.written else "merge", self.done, self.total)
        if one.change is not None:
            base, hashes = one.change.base, {one.tensor.name: digest.hexdigest()}
            self.report.tensors.append(sums.rounding(base.name, one.change.kind, hashes))
