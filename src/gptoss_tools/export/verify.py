"""Whether an export is what it should be: structure, bytes, values, and a forward pass."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_tools.core.publish import read_manifest
from gptoss_tools.errors import DataError, GptossError, MachineError, RunFolderError
from gptoss_tools.export import adapter as adapters
from gptoss_tools.export.bf16 import CONFIG
from gptoss_tools.export.changes import check_finite
from gptoss_tools.export.plan import Progress, tell_nobody
from gptoss_tools.export.record import RECORD, sha256
from gptoss_tools.export.safetensors_io import (
    Checkpoint,
    open_checkpoint,
    read_header,
    read_object,
    table_problems,
)
from gptoss_tools.export.verify_checkpoint import (
    changed_tensors,
    file_problems,
    open_whole,
    value_problems,
)
from gptoss_tools.models.shapes import is_packed

_MAY_CHANGE = (".md", "Modelfile")  # written for people, who may edit them


@dataclass
class Verification:
    """What was looked at, as (check, outcome), and what is wrong, as sentences."""

    folder: Path
    format: str
    checks: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self, name: str, problems: Iterable[str], good: str = "good") -> None:
        """Note the outcome of one check: its problems, or else what was good."""
        found = list(problems)
        self.problems += found
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        self.checks.append((name, count if found else good))

    def skip(self, name: str, reason: str) -> None:
        """Note what was not looked at."""
        self.checks.append((name, f"skipped: {reason}"))


def read_record(folder: Path) -> dict[str, Any]:
    """Read export.json. Raises RunFolderError for a folder without one, DataError if damaged."""
    path = folder / RECORD
    if not path.is_file():
        raise RunFolderError(
            f"{folder} holds no {RECORD}, so it is no export", hint="gptoss export"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["tensors"], list) or not isinstance(record["format"], str):
            raise TypeError("tensors or format of the wrong kind")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="export again") from error
    return record


def verify_export(
    folder: Path,
    base_dir: Path | None = None,
    *,
    forward: bool = True,
    on_progress: Progress | None = None,
) -> Verification:
    """Look at everything in an export, beside its base where one is given; changes nothing.

    Problems are returned, not raised. Raises RunFolderError for a folder that is no export, and
    DataError for a base that cannot be read.
    """
    record = read_record(folder)
    found = Verification(folder, record["format"])
    found.check("files", _sizes(folder), "as published")
    if found.format in ("mxfp4", "bf16", "merged"):
        _checkpoint(found, record, base_dir, forward, on_progress or tell_nobody)
    elif found.format == "gguf":
        _gguf(found, base_dir)
    elif found.format == "adapter":
        found.check("adapter", _adapter(folder, record, base_dir), "finite, unchanged")
    else:
        found.problems.append(f"{RECORD} names the unknown format {found.format!r}")
    return found


def _sizes(folder: Path) -> Iterable[str]:
    manifest = read_manifest(folder)
    if manifest is None:
        yield f"{folder} holds no manifest: it was not written whole"
        return
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size and not name.endswith(_MAY_CHANGE):
            yield f"{name} has {path.stat().st_size:,} bytes, and had {size:,} when it was exported"


def _checkpoint(
    found: Verification,
    record: dict[str, Any],
    base_dir: Path | None,
    forward: bool,
    tell: Progress,
) -> None:
    folder = found.folder
    base = open_checkpoint(base_dir) if base_dir else None
    checkpoint, unread, problems = open_whole(folder)
    found.check("shards and index", problems, f"{len(checkpoint.tensors)} tensors")
    if unread:
        found.skip("names and shapes", "not every shard can be read")
    else:
        found.check("names and shapes", _table(checkpoint, found.format))
        found.check("export.json", _record(record, checkpoint))
    hashes = changed_tensors(record)
    what = f"finite; {len(hashes)} changed"
    what += f", {len(checkpoint.tensors) - len(hashes)} equal to the base" if base else ""
    found.check("values", value_problems(checkpoint, base, hashes, tell), what)
    if base is None:
        found.skip("base", "name it with --base to compare every byte that should be its own")
    else:
        found.check("config and tokenizer", file_problems(folder, base, found.format))
    if found.problems:
        found.skip("forward pass", "there are problems")
    elif forward:
        _forward(found)


def _table(checkpoint: Checkpoint, format: str) -> Iterable[str]:
    try:
        config = read_object(checkpoint.folder / CONFIG)
        if format == "merged":
            return  # only transformers knows the tensors of every family: the forward pass tells
        if is_packed(config) != (format == "mxfp4"):
            has = "quantization_config" if is_packed(config) else "no quantization_config"
            yield f"{RECORD} says {format}, and {CONFIG} has {has}"
        yield from table_problems(checkpoint, config)
    except DataError as error:
        yield str(error)


def _record(record: dict[str, Any], checkpoint: Checkpoint) -> Iterable[str]:
    for name in sorted(changed_tensors(record).keys() - checkpoint.tensors.keys()):
        yield f"{RECORD} says that {name} changed, which is not there"
    for key in ("adapter_sha256", "base", "kept", "ratio"):
        if record.get(key) is None:
            yield f"{RECORD} lacks {key}"


def _forward(found: Verification) -> None:
    from gptoss_tools.export.logits import run_prompts  # loads transformers

    try:
        problem, good = run_prompts(found.folder)
    except MachineError as error:
        found.skip("forward pass", str(error))
    except GptossError as error:
        found.check("forward pass", [str(error)])
    else:
        found.check("forward pass", [problem] if problem else [], good)


def _gguf(found: Verification, base_dir: Path | None) -> None:
    from gptoss_tools.export.gguf_verify import verify_gguf  # loads gguf

    paths = sorted(found.folder.glob("*.gguf"))
    if not paths:
        found.problems.append(f"{found.folder} holds no GGUF")
    good = "keys, table and values" + (", equal to the base where unchanged" if base_dir else "")
    for path in paths:
        found.check(path.name, verify_gguf(path, base_dir), good)


def _adapter(folder: Path, record: dict[str, Any], base_dir: Path | None) -> Iterable[str]:
    path = folder / adapters.WEIGHTS
    if not path.is_file():
        yield f"{path.name} is missing"
        return
    hashes = {path.name: record.get("adapter_sha256")} | dict(record.get("files_sha256") or {})
    for name, digest in hashes.items():
        if (folder / name).is_file() and sha256(folder / name) != digest:
            yield f"{name} is not what was exported: its SHA-256 differs from {RECORD}'s"
    try:
        if base_dir is not None:
            adapters.read_adapter(folder, open_checkpoint(base_dir))
        else:
            for ref in read_header(path).values():
                check_finite(ref)
    except GptossError as error:
        yield str(error)
