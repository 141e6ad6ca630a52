"""Read a finished GGUF back and say what is wrong with it.

Values are compared with the base piece by piece, through plain reads: mapping the file would count
all of it as this process's memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, ReaderTensor

from gptoss_tools.export.gguf_blocks import BLOCK_BYTES
from gptoss_tools.export.gguf_layout import ARCHITECTURE, Dimensions, GgufTensor, read_config
from gptoss_tools.export.gguf_metadata import REQUIRED as MODEL_KEYS
from gptoss_tools.export.gguf_tensors import plan_tensors
from gptoss_tools.export.gguf_tokenizer import REQUIRED as TOKENIZER_KEYS
from gptoss_tools.export.record import RECORD
from gptoss_tools.export.rounding import Sums
from gptoss_tools.export.safetensors_io import open_checkpoint

_PIECE = BLOCK_BYTES << 20  # whole blocks, whole floats
_NAN_SCALE = 255
_KINDS = {
    "mxfp4": {Kind.MXFP4},
    "float32": {Kind.F32},
    "matrix": {Kind.F32, Kind.F16, Kind.BF16},
}


def verify_gguf(path: Path, base_dir: Path | None) -> list[str]:
    """Return what is wrong with a GGUF, as sentences; an empty list means that all is well.

    Checks keys, the table of tensors, and every value for NaN and infinity. With a base also the
    experts, block by block, and, where export.json beside the file says what the adapter changed,
    everything else. Raises DataError for a base that cannot be read.
    """
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        return [f"{path} cannot be read as GGUF, it is damaged or cut off: {error}"]
    problems = list(_keys(reader))
    if problems:
        return problems
    size = _dimensions(reader)
    if base_dir is not None:
        expected = Dimensions.from_config(read_config(base_dir))
        if expected != size:
            return [f"{path} describes {size}, and the base is {expected}"]
    problems = list(_table(reader, size))
    if problems:
        return problems
    found = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in found.values():
        if _has_nan(path, tensor):
            problems.append(f"{tensor.name} holds NaN or infinity")
    if base_dir is not None:
        problems += _differences(path, found, size, base_dir)
    return problems


def _keys(reader: GGUFReader) -> Iterator[str]:
    for key in (*MODEL_KEYS, *TOKENIZER_KEYS):
        if key not in reader.fields:
            yield f"the key {key} is missing"
    field = reader.get_field("general.architecture")
    if field is not None and field.contents() != ARCHITECTURE:
        yield f"general.architecture is {field.contents()}, not {ARCHITECTURE}"
    lengths = {
        key: len(field.data)
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
        if (field := reader.get_field(key)) is not None
    }
    if len(set(lengths.values())) > 1:
        yield "tokens and their types differ in number: " + ", ".join(map(str, lengths.values()))


def _dimensions(reader: GGUFReader) -> Dimensions:
    def number(key: str) -> int:
        field = reader.get_field(f"{ARCHITECTURE}.{key}")
        return int(field.contents()) if field is not None else 0

    tokens = reader.get_field("tokenizer.ggml.tokens")
    return Dimensions(
        layers=number("block_count"),
        hidden=number("embedding_length"),
        feed_forward=number("expert_feed_forward_length"),
        heads=number("attention.head_count"),
        key_value_heads=number("attention.head_count_kv"),
        head=number("attention.key_length"),
        experts=number("expert_count"),
        vocabulary=len(tokens.data) if tokens is not None else 0,
    )


def _table(reader: GGUFReader, size: Dimensions) -> Iterator[str]:
    expected = {tensor.name: tensor for tensor in size.table()}
    found = {tensor.name: tensor for tensor in reader.tensors}
    for name in sorted(expected.keys() - found.keys()):
        yield f"the tensor {name} is missing"
    for name in sorted(found.keys() - expected.keys()):
        yield f"the tensor {name} does not belong to gpt-oss"
    for name in sorted(found.keys() & expected.keys()):
        yield from _shape(found[name], expected[name])


def _shape(found: ReaderTensor, expected: GgufTensor) -> Iterator[str]:
    shape = tuple(int(n) for n in reversed(found.shape.tolist()))
    if shape != expected.shape:
        yield f"{found.name} has shape {shape}, not {expected.shape}"
    elif found.tensor_type not in _KINDS[expected.role]:
        yield f"{found.name} is {found.tensor_type.name}"


def _read(path: Path, tensor: ReaderTensor) -> Iterator[np.ndarray]:
    end = tensor.data_offset + tensor.n_bytes
    for offset in range(tensor.data_offset, end, _PIECE):
        yield np.fromfile(path, np.uint8, min(_PIECE, end - offset), offset=offset)


def _has_nan(path: Path, tensor: ReaderTensor) -> bool:
    for piece in _read(path, tensor):
        if tensor.tensor_type == Kind.MXFP4:
            bad = piece[::BLOCK_BYTES] == _NAN_SCALE
        elif tensor.tensor_type == Kind.BF16:  # all eight bits of the exponent
            bad = piece.view("<u2") & 0x7F80 == 0x7F80
        else:
            kind = "<f4" if tensor.tensor_type == Kind.F32 else "<f2"
            bad = ~np.isfinite(piece.view(kind))
        if bad.any():
            return True
    return False


def _differences(
    path: Path, found: dict[str, ReaderTensor], size: Dimensions, base_dir: Path
) -> Iterator[str]:
    changed = _changed(path)
    hashes = {name: value for one in (changed or {}).values() for name, value in one.items()}
    exact = found["blk.0.attn_q.weight"].tensor_type == Kind.F32
    for planned in plan_tensors(size, open_checkpoint(base_dir), {}, exact=exact):
        tensor = planned.tensor
        if changed is None and "_exps." not in tensor.name:
            continue
        if changed is not None and tensor.source in changed:
            if tensor.name in hashes and _sha256(path, found[tensor.name]) != hashes[tensor.name]:
                yield f"{tensor.name} is not what {RECORD} says"
            continue
        if planned.kind != found[tensor.name].tensor_type:
            yield f"{tensor.name} is {found[tensor.name].tensor_type.name}, not {planned.kind.name}"
            continue
        offset = found[tensor.name].data_offset
        for piece in planned.pieces(Sums()):
            flat = piece.reshape(-1)
            if not np.array_equal(flat, np.fromfile(path, np.uint8, flat.size, offset=offset)):
                yield f"{tensor.name} differs from {tensor.source} of the base"
                break
            offset += flat.size


def _sha256(path: Path, tensor: ReaderTensor) -> str:
    digest = hashlib.sha256()
    for piece in _read(path, tensor):
        digest.update(piece.data)
    return digest.hexdigest()


def _changed(path: Path) -> dict[str, dict[str, str]] | None:
    """What the adapter changed, by checkpoint name, with hashes; None where that is not known."""
    try:
        record = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))
        return {tensor["name"]: dict(tensor.get("sha256") or {}) for tensor in record["tensors"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
