"""Merge a LoRA adapter into a gpt-oss checkpoint, from the files alone and without a model.

The base's files are copied byte for byte; then only the tensors that the adapter changes are
rewritten at their places. Headers, offsets, index, tokenizer and config.json stay as they are (a
re-saved config loses keys that Ollama and vLLM read). Memory: about one tensor. Other formats and
expert adapters are not here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gptoss_tools.core.publish import MANIFEST, sync
from gptoss_tools.core.runs import open_run
from gptoss_tools.errors import DataError, RunFolderError
from gptoss_tools.export import adapter as adapters
from gptoss_tools.export.files import copy_file, disk_full, whole_folder
from gptoss_tools.export.rounding import Rounding, Sums, together, warnings_about
from gptoss_tools.export.safetensors_io import Checkpoint, open_checkpoint

RECORD = "export.json"
_VERSIONS = ("gptoss-tools", "torch")
_LEFT_BEHIND = (".bin", ".gguf", ".pt", ".pth", ".safetensors", ".onnx", ".msgpack", ".h5")
_SETTINGS = (
    *("lora_r", "lora_alpha", "lora_target_modules", "learning_rate", "max_steps", "seed"),
    *("num_generations", "prompts_per_step", "gradient_accumulation_steps", "num_iterations"),
    *("loss_type", "scale_rewards", "beta", "temperature", "reward", "invalid_reward"),
    *("max_prompt_length", "max_completion_length", "action_pattern"),
)
_NOT_THE_BASE = {"README.md", MANIFEST, RECORD, adapters.CONFIG}
Progress = Callable[[str, int, int], None]
"""Called with (what, bytes done, bytes in all)."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export will do; making it reads headers and the adapter, and writes nothing."""

    adapter_dir: Path
    base: Checkpoint
    base_name: str
    changes: tuple[adapters.Change, ...]
    copies: tuple[Path, ...]
    bytes_total: int
    bytes_rewritten: int


@dataclass
class ExportReport:
    """What an export did; a dry run measures the same and has `written` False."""

    out: Path
    format: str
    base_name: str
    written: bool
    tensors: list[Rounding]
    ratio: float
    kept: float
    bytes_total: int
    bytes_rewritten: int
    seconds: float = 0.0
    copied_by: str = ""
    warnings: list[str] = field(default_factory=list)

    def by_kind(self) -> list[tuple[str, float, float]]:
        """(module, ratio, kept) over all layers of each kind of module, and over everything."""
        groups: dict[str, list[Rounding]] = {}
        for one in self.tensors:
            groups.setdefault(one.name.rsplit(".", 2)[-2], []).append(one)
        found = [(name, *together(group)) for name, group in groups.items()]
        return [*found, ("all", self.ratio, self.kept)]

    def to_record(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"out": str(self.out)}


def plan_export(adapter_dir: Path, base_dir: Path) -> ExportPlan:
    """Check that the adapter fits the base, and list what will be copied and rewritten.

    Raises DataError or ConfigError for whatever cannot be merged exactly, see `export.adapter`.
    """
    base = open_checkpoint(base_dir)
    changes = tuple(adapters.read_changes(adapter_dir, base))
    extra = [
        path
        for path in sorted(base_dir.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix not in _LEFT_BEHIND
        and path.name not in _NOT_THE_BASE
        and path != base.index
    ]
    if not any(path.name == "config.json" for path in extra):
        raise DataError(f"{base_dir} holds no config.json")
    # The index comes last, so a folder that was cut off does not even look like a checkpoint.
    copies = (*base.shards, *extra, *([base.index] if base.index else []))
    named = adapters.read_config(adapter_dir).get("base_model_name_or_path") or ""
    name = base_dir.resolve().name if not named or Path(named).is_absolute() else named
    return ExportPlan(
        adapter_dir=adapter_dir,
        base=base,
        base_name=name,
        changes=changes,
        copies=copies,
        bytes_total=sum(path.stat().st_size for path in copies),
        bytes_rewritten=sum(change.base.nbytes for change in changes),
    )


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
    _check_out(out_dir, (adapter_dir, base_dir), overwrite)
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
    tell = on_progress or (lambda what, done, total: None)
    if dry_run:
        _rewrite(plan, None, report, tell)
    else:
        with whole_folder(out_dir, replace=overwrite) as folder:
            report.copied_by = _copy(plan, folder, tell)
            _rewrite(plan, folder, report, tell)
            _write_record(plan, folder / RECORD, report)
            for path in folder.iterdir():
                sync(path)
    report.seconds = time.perf_counter() - start
    return report


def _check_out(out: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    for source in sources:
        if source.resolve().is_relative_to(out.resolve()):
            raise RunFolderError(f"{out} holds {source}, which the export reads", hint="use --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise RunFolderError(f"{out} exists and is no export of ours", hint="name another --out")
    if not overwrite:
        raise RunFolderError(f"{out} exists", hint="pass --overwrite, or name another --out")


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


def _write_record(plan: ExportPlan, path: Path, report: ExportReport) -> None:
    record = {
        "format": report.format,
        "base": plan.base_name,
        "adapter_sha256": sha256(plan.adapter_dir / adapters.WEIGHTS),
        "adapter_config_sha256": sha256(plan.adapter_dir / adapters.CONFIG),
        "training": _training(plan.adapter_dir),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "bytes_total": report.bytes_total,
        "bytes_rewritten": report.bytes_rewritten,
        "ratio": report.ratio,
        "kept": report.kept,
        "warnings": report.warnings,
        "tensors": [asdict(rounding) for rounding in report.tensors],
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _training(adapter_dir: Path) -> dict[str, Any]:
    """What the adapter's run says of itself; names of files and folders stay at home."""
    run = open_run(adapter_dir)
    data = run.config.get("data")
    facts = {key: run.settings[key] for key in _SETTINGS if key in run.settings}
    if isinstance(data, dict):
        facts |= {f"data_{key}": data[key] for key in ("sha256", "rows") if key in data}
    return facts


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
