"""What rounding to the stored type leaves of an adapter's change, measured while merging.

W is the stored weight, D the change in float32, K the change after rounding; all norms Frobenius.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

KEPT_ENOUGH = 0.9
"""Below this share of the change kept, the report advises to serve the adapter unmerged."""

REQUANTISED = "requantised"
"""The kind of a tensor that was packed into MXFP4 again."""


@dataclass(frozen=True)
class Rounding:
    """One tensor: `ratio` is |D| / |W|, `kept` <K, D> / <D, D>, `error` |K - D| / |D|.

    `sha256` maps the tensors that hold the result in the export to their hashes.
    """

    name: str
    kind: str
    weight_norm: float
    delta_norm: float
    ratio: float
    kept: float
    error: float
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass
class Sums:
    """Running sums over pieces of tensors: |W|^2, |D|^2, |K - D|^2 and <K, D>."""

    weight: float = 0.0
    delta: float = 0.0
    error: float = 0.0
    kept: float = 0.0

    def add(self, stored: torch.Tensor, merged: torch.Tensor, rounded: torch.Tensor) -> None:
        weight = stored.float()
        delta, kept = (merged - weight).flatten(), (rounded.float() - weight).flatten()
        self.weight += _square(weight.flatten())
        self.delta += _square(delta)
        self.kept += float(torch.dot(delta, kept))
        self.error += _square(kept.sub_(delta))

    def rounding(self, name: str, kind: str, sha256: dict[str, str] | None = None) -> Rounding:
        weight, delta, error = self.weight**0.5, self.delta**0.5, self.error**0.5
        return Rounding(
            name=name,
            kind=kind,
            weight_norm=weight,
            delta_norm=delta,
            ratio=delta / weight if weight else float(delta > 0),
            kept=self.kept / self.delta if self.delta else 1.0,
            error=error / delta if delta else 0.0,
            sha256=sha256 or {},
        )


def _square(flat: torch.Tensor) -> float:
    # BLAS: ten times as fast as a norm in float64, and good to six digits.
    return float(torch.dot(flat, flat))


def together(name: str, group: Sequence[Rounding]) -> Rounding:
    """Several tensors as if they were one."""
    squares = [one.delta_norm**2 for one in group]
    return Sums(
        weight=sum(one.weight_norm**2 for one in group),
        delta=sum(squares),
        error=sum(one.error**2 * square for one, square in zip(group, squares, strict=True)),
        kept=sum(one.kept * square for one, square in zip(group, squares, strict=True)),
    ).rounding(name, "all")


def warnings_about(whole: Rounding) -> Iterator[str]:
    """Sentences a user should read, from the rounding of everything together."""
    if whole.ratio == 0:
        yield "the adapter changes nothing: all its products are zero"
    elif whole.kept < KEPT_ENOUGH:
        yield (
            f"rounding keeps only {whole.kept:.0%} of the adapter's change, because it is small "
            f"beside the weights ({whole.ratio:.2%}); serve the adapter unmerged to keep all of it"
        )
