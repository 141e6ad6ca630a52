"""One tensor's change by a LoRA adapter, computed in float32 a piece at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_tools.errors import DataError
from gptoss_tools.export.safetensors_io import TensorRef
from gptoss_tools.export.threads import one_thread

CHUNK = 1 << 18
"""Values per piece: 1 MB in float32, which stays in the caches. Pieces of 64 MB took eight times
the processor time, most of it for fresh pages, and float32 sums over them were less exact."""


@dataclass(frozen=True)
class Change:
    """How one base tensor changes: new values first, then a LoRA product or a LoRA bias on them.

    Shapes: base and `new` [out, in] or [out], A [r, in], B [out, r], magnitude [out], plus [out].
    """

    base: TensorRef
    a: TensorRef | None = None
    b: TensorRef | None = None
    scale: float = 1.0
    magnitude: TensorRef | None = None
    plus: TensorRef | None = None
    new: TensorRef | None = None

    @property
    def kind(self) -> str:
        """lora, dora, bias or replaced, for tables."""
        if self.a is not None:
            return "dora" if self.magnitude is not None else "lora"
        return "bias" if self.plus is not None else "replaced"

    def merged(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield (first row, stored rows, merged float32 rows), `CHUNK` values at a time.

        Torch keeps to one thread meanwhile, also in what the caller does with the rows.
        """
        a = self.a.read().float() if self.a is not None else None
        with one_thread():
            for first, last in self.base.pieces(CHUNK):
                stored = self.base.read(first, last)
                yield first, stored, self._merge(stored, a, first, last)

    def _merge(
        self, stored: torch.Tensor, a: torch.Tensor | None, first: int, last: int
    ) -> torch.Tensor:
        start = stored if self.new is None else self.new.read(first, last)
        merged = start.to(torch.float32, copy=True)
        if a is not None and self.b is not None:
            merged += (self.b.read(first, last).float() @ a) * self.scale
        if self.plus is not None:
            merged += self.plus.read(first, last).float() * self.scale
        if self.magnitude is not None:
            norm = torch.linalg.vector_norm(merged, dim=1)
            factor = self.magnitude.read(first, last).float() / norm
            merged *= factor[:, None]
        return merged


def scale_of(module: str, rank: int, config: dict[str, Any]) -> float:
    """The factor of B @ A: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
    alpha = by_pattern(config, "alpha_pattern", module, "lora_alpha")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def rank_of(module: str, config: dict[str, Any]) -> int:
    """The rank that the adapter's config gives a module."""
    return int(by_pattern(config, "rank_pattern", module, "r"))


def by_pattern(config: dict[str, Any], key: str, module: str, default: str) -> float:
    """PEFT's rule: the first pattern that matches the end of the module's name, from a dot on.

    Raises DataError where the config holds no patterns or no finite number there.
    """
    value, patterns = config.get(default, 8), config.get(key) or {}
    try:
        for pattern, own in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                value = own
                break
    except (AttributeError, re.error) as error:
        raise DataError(f"{key} in adapter_config.json holds no patterns: {error}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{default} in adapter_config.json is {value!r} for {module}, not a number")
    return value


def same_shape(ref: TensorRef, shape: tuple[int, ...], what: str) -> None:
    """Raise DataError unless the adapter's tensor has the shape that the base asks for."""
    if ref.shape != shape:
        raise DataError(
            f"{ref.path}: {ref.name} has shape {ref.shape}, but {what} needs {shape}",
            hint="is this the base that the adapter was trained on?",
        )


def check_finite(ref: TensorRef) -> None:
    """Raise DataError where the adapter's tensor holds NaN or infinity."""
    for first, last in ref.pieces(CHUNK):
        if not bool(torch.isfinite(ref.read(first, last)).all()):
            raise DataError(
                f"{ref.path}: {ref.name} holds NaN or infinity", hint="use an earlier checkpoint"
            )
