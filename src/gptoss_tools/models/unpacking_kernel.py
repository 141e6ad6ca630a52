"""The Triton kernel behind `unpacking.dequantise`; imported only where there is triton.

It has run under Triton's interpreter (tests/models/test_unpacking.py), and not on a GPU yet: none
was at hand. Hold its speed, and what a compiler makes of it, to be unverified until
`pytest -m gpu tests/models` has passed on one.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_STEP = 1024  # values per program


def unpack(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    """Fill `out` [_N, out, G * 32] from blocks [_N, out, G, 16], scales [_N, out, G]; contiguous.

    The device is any that Triton serves; under its interpreter, the CPU.
    """
    kernel: Any = _unpack
    on_gpu = torch.cuda.device(blocks.device) if blocks.is_cuda else contextlib.nullcontext()
    with on_gpu:
        kernel[(triton.cdiv(out.numel(), _STEP),)](blocks, scales, out, out.numel(), STEP=_STEP)


@triton.jit
def _unpack(blocks, scales, out, total, STEP: tl.constexpr):
    """One value per lane; the two powers of two stay in float32's range."""
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    inside = at < total
    byte = tl.load(blocks + at // 2, mask=inside, other=0).to(tl.int32)
    exponent = tl.load(scales + at // 32, mask=inside, other=0).to(tl.int32) - 128
    code = (byte >> ((at & 1) * 4).to(tl.int32)) & 15
    size = code & 7
    # twice the value: 0 1 2 3 4 6 8 12
    doubled = tl.where(size < 2, size, (2 + (size & 1)) << tl.maximum((size >> 1) - 1, 0))
    sign = tl.where(code > 7, -1.0, 1.0)  # times, not minus: -0.0 keeps its sign
    half = exponent >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((exponent - half + 127) << 23).to(tl.float32, bitcast=True)
    value = doubled.to(tl.float32) * sign * first * second
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
