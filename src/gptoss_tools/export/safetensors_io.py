"""Where each tensor of a safetensors file lies, so that single tensors are read and rewritten.

The format: 8 bytes little-endian header length, a JSON header, then the data. Only what the export
needs: no mapping into memory, no devices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_tools.errors import DataError
from gptoss_tools.models.shapes import expected_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # the format's own limit
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8}
_BITS |= {"U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}
_BITS |= {"F8_E8M0": 8, "F4": 4}


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a file: `offset` counts bytes from the start of the file."""

    name: str
    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype | None:
        """The float type that torch computes with, None for packed and integer types."""
        return _TYPES.get(self.kind)

    def pieces(self, values: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows (first axis) that hold about `values` values each.

        Multiples of 64 rows where they are many: BLAS rounds the last few rows of a product
        otherwise, and merging by pieces is to give the bits of merging the whole.
        """
        rows = self.shape[0] if self.shape else 1
        step = max(1, values // max(1, math.prod(self.shape[1:])))
        step -= step % 64 if step > 64 else 0
        for first in range(0, rows, step):
            yield first, min(rows, first + step)

    def read_bytes(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Bytes first..last of the tensor (all by default)."""
        last = self.nbytes if last is None else min(last, self.nbytes)
        with self.path.open("rb") as file:
            file.seek(self.offset + first)
            data = np.fromfile(file, dtype=np.uint8, count=last - first)
        if data.nbytes != last - first:
            raise DataError(f"{self.path} ends inside the tensor {self.name}")
        return data

    def read(self, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Read rows first..last of the first axis (all by default): floats, or packed bytes."""
        dtype = torch.uint8 if self.kind == "U8" else self.dtype
        if dtype is None:
            raise DataError(f"{self.name} in {self.path} is {self.kind}, not a float type")
        rows = self.shape[0] if self.shape else 1
        last = rows if last is None else min(last, rows)
        step = self.nbytes // rows if rows else 0
        data = torch.from_numpy(self.read_bytes(first * step, last * step))
        return data.view(dtype).reshape(last - first, *self.shape[1:])


def read_header(path: Path) -> dict[str, TensorRef]:
    """List the tensors of one file. Raises DataError if it is cut off or no safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise DataError(f"{path} is no safetensors file, or is cut off inside its header")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        refs = {name: _ref(name, path, record, 8 + length) for name, record in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} has a safetensors header that cannot be read: {error}") from error
    end = max((ref.offset + ref.nbytes for ref in refs.values()), default=8 + length)
    if end != size:
        problem = "is cut off" if size < end else "has bytes after its last tensor"
        raise DataError(
            f"{path} {problem}: {size:,} bytes where its header says {end:,}",
            hint="fetch or copy the file again",
        )
    return refs


def _ref(name: str, path: Path, record: dict, start: int) -> TensorRef:
    first, last = record["data_offsets"]
    shape = tuple(int(n) for n in record["shape"])
    bits = _BITS.get(record["dtype"])
    if first < 0 or last < first or (bits and math.prod(shape) * bits != (last - first) * 8):
        raise ValueError(f"{name} has offsets that do not fit its shape")
    return TensorRef(name, path, record["dtype"], shape, start + first, last - first)


def header_bytes(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """What precedes the data in a file of these tensors: (name, kind, shape, bytes) in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, kind, shape, nbytes in tensors:
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8, as the format asks
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Checkpoint:
    """A model folder: its shards in name order, and every tensor in them."""

    folder: Path
    shards: tuple[Path, ...]
    tensors: dict[str, TensorRef]
    index: Path | None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of the shards that the index names, or of a single model.safetensors.

    Only files of the folder itself count: `original/` and `metal/` hold the same model in other
    layouts. Raises DataError where files and index disagree.
    """
    index = folder / INDEX
    if not index.is_file():
        single = folder / SINGLE
        if not single.is_file():
            raise DataError(
                f"{folder} holds neither {INDEX} nor {SINGLE}",
                hint="name a folder with a gpt-oss checkpoint as the base",
            )
        return Checkpoint(folder, (single,), read_header(single), None)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is no index of shards: {error}") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise DataError(f"{index} names {outside[0]}, which is not a file of the folder itself")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks the shard {missing[0]} that its index names")
    headers = {name: read_header(folder / name) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise DataError(f"{folder / name} lacks the tensor {tensor} that the index puts there")
    tensors = {tensor: headers[name][tensor] for tensor, name in weight_map.items()}
    return Checkpoint(folder, tuple(folder / name for name in names), tensors, index)


def table_problems(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[str]:
    """Say where names, shapes and types are not what config.json asks for.

    Raises DataError where config.json does not say the sizes.
    """
    expected = expected_shapes(config)
    for name, shape in expected.items():
        ref = checkpoint.tensors.get(name)
        if ref is None:
            yield f"{name} is missing"
        elif ref.shape != shape:
            yield f"{name} has shape {ref.shape}, and config.json asks for {shape}"
        elif (ref.kind != "U8") if name.endswith(("_blocks", "_scales")) else ref.dtype is None:
            yield f"{name} is of type {ref.kind}"
    for name in checkpoint.tensors.keys() - expected.keys():
        yield f"{name} belongs to no model with this config.json"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises DataError otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object")
    return content
