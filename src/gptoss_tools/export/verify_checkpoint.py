"""What is wrong with an exported checkpoint: files, table of tensors, and every byte of them.

Each tensor is read once, in pieces: its values are looked at, and compared with the base's where
the adapter left them alone, or with the hash in export.json where it changed them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_tools.errors import DataError
from gptoss_tools.export.bf16 import CONFIG, Output, plain_config
from gptoss_tools.export.experts import Experts, experts_of
from gptoss_tools.export.plan import Progress, extra_files
from gptoss_tools.export.rounding import Sums
from gptoss_tools.export.safetensors_io import (
    INDEX,
    SINGLE,
    Checkpoint,
    TensorRef,
    read_header,
)

_PIECE = 16 << 20
_LARGEST_SCALE = 252  # 6 * 2**(252 - 127) is the last product that bfloat16 holds


def open_whole(folder: Path) -> tuple[Checkpoint, list[str], list[str]]:
    """Open a checkpoint as far as it can be read; return it, unread shards, and all problems.

    Unlike `open_checkpoint`, which stops at the first problem.
    """
    index, problems = folder / INDEX, []
    weight_map: dict[str, str] = {}
    total = None
    if index.is_file():
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            weight_map, total = dict(content["weight_map"]), content["metadata"]["total_size"]
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{index} is no index of shards: {error}"
            return Checkpoint(folder, (), {}, index), [INDEX], [problem]
    names = sorted(set(weight_map.values())) or [SINGLE]
    headers: dict[str, dict[str, TensorRef]] = {}
    for name in names:
        if not (folder / name).is_file():
            problems.append(f"{folder} lacks the shard {name}")
            continue
        try:
            headers[name] = read_header(folder / name)
        except DataError as error:
            problems.append(str(error))
    tensors: dict[str, TensorRef] = {}
    for name, refs in headers.items():
        for tensor, ref in refs.items():
            if tensor in tensors:
                problems.append(f"{tensor} is in {tensors[tensor].path.name} and in {name}")
            elif weight_map and weight_map.get(tensor) != name:
                problems.append(f"{name} holds {tensor}, which the index does not put there")
            tensors[tensor] = ref
    for tensor, name in weight_map.items():
        if name in headers and tensor not in headers[name]:
            problems.append(f"{name} lacks {tensor}, which the index puts there")
    unread = [name for name in names if name not in headers]
    held = sum(ref.nbytes for ref in tensors.values())
    if total is not None and not unread and total != held:
        problems.append(f"{INDEX} says {total:,} bytes of tensors, the shards hold {held:,}")
    shards = tuple(folder / name for name in headers)
    found = Checkpoint(folder, shards, tensors, index if index.is_file() else None)
    return found, unread, problems


def file_problems(folder: Path, base: Checkpoint, format: str) -> Iterator[str]:
    """Compare config, tokenizer, index and the shards' headers with the base's."""
    if format in ("mxfp4", "merged"):
        if base.index and _content(folder / base.index.name) != _content(base.index):
            yield f"{base.index.name} differs from the base's"
        for shard in base.shards:
            if _header(folder / shard.name) != _header(shard):
                yield f"{shard.name} has another header than the base's"
    for path in extra_files(base):
        own = folder / path.name
        if not own.is_file():
            yield f"{path.name} of the base is missing"
        elif path.name == CONFIG and format == "bf16":
            try:
                same = json.loads(own.read_text(encoding="utf-8")) == plain_config(path)
            except ValueError:
                same = False
            if not same:
                yield f"{CONFIG} is not the base's without quantization_config"
        elif _content(own) != _content(path):
            yield f"{path.name} differs from the base's"


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _header(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def value_problems(
    checkpoint: Checkpoint,
    base: Checkpoint | None,
    hashes: Mapping[str, str | None],
    tell: Progress,
) -> Iterator[str]:
    """Read every tensor; `hashes` maps what the adapter changed to its hash, None if not known."""
    experts = experts_of(base) if base else {}
    done, total = 0, sum(ref.nbytes for ref in checkpoint.tensors.values())
    for ref in sorted(checkpoint.tensors.values(), key=lambda ref: (ref.path, ref.offset)):
        before = None
        if base is not None and ref.name not in hashes:
            before = experts.get(ref.name) or base.tensors.get(ref.name)
            if before is None or _stored(before) != (ref.kind, ref.shape):
                yield f"{ref.name} is not of the base's type and shape, or not in the base"
                before = None
        digest, sound, same = hashlib.sha256(), True, True
        theirs = _pieces(before) if before is not None else itertools.repeat(None)
        for data, original in zip(_pieces(ref), theirs, strict=False):
            sound = sound and _sound(ref, data)
            same = same and (original is None or _equal(data, original))
            if hashes.get(ref.name):
                digest.update(data.data)
            done += data.nbytes
            tell("verify", done, total)
        if not sound:
            packed = ref.name.endswith("_scales")
            yield f"{ref.name} holds {'scales that overflow' if packed else 'NaN or infinity'}"
        if not same:
            yield f"{ref.name} differs from the base, and export.json does not say it changed"
        if hashes.get(ref.name) not in (None, digest.hexdigest()):
            yield f"{ref.name} is not what was exported: its SHA-256 differs from export.json's"


def _stored(source: TensorRef | Experts) -> tuple[str, tuple[int, ...]]:
    """Type and shape that an untouched tensor has in an export."""
    if isinstance(source, TensorRef):
        return source.kind, source.shape
    count, out, inputs = source.shape
    return "BF16", (count, inputs, out)


def _pieces(source: TensorRef | Experts) -> Iterator[np.ndarray]:
    """The bytes of a tensor, cut where its experts end, or of packed experts as bfloat16."""
    if isinstance(source, TensorRef):
        step = source.nbytes // source.shape[0] if len(source.shape) == 3 else _PIECE
        for first in range(0, source.nbytes, max(1, step)):
            yield source.read_bytes(first, first + step)
        return
    kind, shape = _stored(source)
    yield from Output(source.name, kind, shape, 0, source).pieces(Sums())


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.size == other.size and one.size % 8 == 0:  # eight bytes at a time: four times as fast
        one, other = one.view(np.uint64), other.view(np.uint64)
    return np.array_equal(one, other)


def _sound(ref: TensorRef, data: np.ndarray) -> bool:
    if ref.kind == "U8":
        return not ref.name.endswith("_scales") or int(data.max()) <= _LARGEST_SCALE
    return ref.dtype is None or bool(torch.isfinite(torch.from_numpy(data).view(ref.dtype)).all())


def changed_tensors(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Which tensors export.json says the adapter changed, with their hashes."""
    found: dict[str, str | None] = {}
    for one in record.get("tensors") or ():
        found |= dict(one.get("sha256") or {one["name"]: None})
    return found
