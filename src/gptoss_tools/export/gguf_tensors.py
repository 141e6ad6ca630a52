"""The bytes of a GGUF's tensors, read from base and adapter piece by piece.

A plan decides every type before the first byte, since a GGUF begins with the table of its tensors.
Memory: one expert's matrix, or about 64 MB of float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from gptoss_tools.core.mxfp4 import packed_names
from gptoss_tools.errors import DataError
from gptoss_tools.export.changes import CHUNK, Change
from gptoss_tools.export.gguf_blocks import repack
from gptoss_tools.export.gguf_layout import Dimensions, GgufTensor
from gptoss_tools.export.rounding import Sums
from gptoss_tools.export.safetensors_io import Checkpoint, TensorRef

_KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}


@dataclass(frozen=True)
class Planned:
    """A tensor of the file: its type, its checkpoint tensors (MXFP4: blocks, scales), its change.

    `exact` keeps a change in float32, otherwise it is rounded once to the base's type.
    """

    tensor: GgufTensor
    kind: Kind
    sources: tuple[TensorRef, ...]
    change: Change | None
    exact: bool

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return self.tensor.nbytes(self.kind)

    def pieces(self, sums: Sums) -> Iterator[np.ndarray]:
        """Yield the data in order, as bytes; `sums` learns what rounding keeps of a change.

        Raises DataError for values that the type cannot hold.
        """
        if self.kind == Kind.MXFP4:
            for expert in range(self.tensor.shape[0]):
                yield expert_blocks(self, expert)
        elif self.change is not None:
            yield from self._merged(self.change, sums)
        else:
            same = self.kind == _kind_of(self.sources[0])
            for stored in self._stored():
                yield _as_bytes(stored if same else stored.float())

    def _stored(self) -> Iterator[torch.Tensor]:
        ref = self.sources[0]
        for rows in ref.pieces(CHUNK):
            yield self._part(ref.read(*rows))

    def _part(self, rows: torch.Tensor) -> torch.Tensor:
        first, step = self.tensor.part
        return rows if step == 1 else rows[:, first::step]

    def _merged(self, change: Change, sums: Sums) -> Iterator[np.ndarray]:
        for _, stored, merged in change.merged():
            stored, merged = self._part(stored), self._part(merged)
            kept = merged if self.exact else merged.to(stored.dtype)
            sums.add(stored, merged, kept)
            if not math.isfinite(sums.kept + sums.error):  # NaN and infinity reach the sums
                base = change.base
                raise DataError(
                    f"merging {base.name} gives NaN or values too large for {base.kind}"
                )
            yield _as_bytes(kept.float() if self.kind == Kind.F32 else kept)


def plan_tensors(
    size: Dimensions, base: Checkpoint, changes: Mapping[str, Change], *, exact: bool
) -> list[Planned]:
    """Find every tensor's source, and hold the base to its config.json.

    `changes` goes by checkpoint name; `exact` makes attention weights and whatever changes float32.
    Raises DataError for a base that lacks a tensor, has one of another shape or kind, or holds one
    more than a GGUF can take.
    """
    table = size.table()
    unknown = sorted(set(base.tensors).difference(*(_names(tensor) for tensor in table)))
    planned = [_plan(tensor, base, changes.get(tensor.source), exact) for tensor in table]
    if unknown:
        raise DataError(f"{base.folder} holds {unknown[0]}, for which a GGUF has no place")
    return planned


def _plan(tensor: GgufTensor, base: Checkpoint, change: Change | None, exact: bool) -> Planned:
    names = _names(tensor)
    missing = [name for name in names if name not in base.tensors]
    if missing:
        unpacked = tensor.source in base.tensors
        reason = "its experts are not packed in MXFP4" if unpacked else f"it lacks {missing[0]}"
        raise DataError(f"{base.folder} cannot become a GGUF: {reason}")
    sources = tuple(base.tensors[name] for name in names)
    expected = tensor.source_shape()
    shapes = [(*expected, 16), expected] if tensor.role == "mxfp4" else [expected]
    for ref, shape in zip(sources, shapes, strict=True):
        packed = ref.kind == "U8"
        if ref.shape != shape or packed != (tensor.role == "mxfp4"):
            raise DataError(
                f"{ref.name} in {ref.path} is {ref.kind} {ref.shape}, and config.json asks for "
                f"{shape}"
            )
    if tensor.role == "mxfp4":
        kind = Kind.MXFP4
    elif tensor.role == "float32" or (exact and (change or ".self_attn." in tensor.source)):
        kind = Kind.F32
    else:
        kind = _kind_of(sources[0])
    return Planned(tensor, kind, sources, change, exact)


def expert_blocks(planned: Planned, expert: int) -> np.ndarray:
    """One expert's matrix as GGML keeps it, uint8 [rows, bytes per row]."""
    first, step = planned.tensor.part
    stored = (ref.read(expert, expert + 1)[0].numpy()[first::step] for ref in planned.sources)
    return repack(*stored)


def _names(tensor: GgufTensor) -> tuple[str, ...]:
    return packed_names(tensor.source) if tensor.role == "mxfp4" else (tensor.source,)


def _kind_of(ref: TensorRef) -> Kind:
    kind = _KINDS.get(ref.kind)
    if kind is None:
        raise DataError(f"{ref.name} in {ref.path} is {ref.kind}, which a GGUF does not hold")
    return kind


def _as_bytes(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().view(torch.uint8).numpy().reshape(-1)
