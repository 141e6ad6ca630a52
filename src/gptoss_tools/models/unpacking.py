"""MXFP4 blocks to numbers, fast: the bits of `core.mxfp4.decode` in any layout, on any device."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError

_WIDE = {torch.bfloat16: torch.int32, torch.float32: torch.int64}  # two values as one
_STEP = 3 << 18  # bytes of values per step: the temporaries stay in the processor's cache


def dequantise(
    blocks: Tensor, scales: Tensor, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Unpack blocks uint8 [_N, out, G, 16] and scales uint8 [_N, out, G] to [_N, out, G * 32].

    `out`, of any strides, is filled and returned. On CUDA a Triton kernel does it where triton is
    installed. Raises DataError for shapes that do not belong together, ConfigError for a dtype
    other than float32 and bfloat16.
    """
    if blocks.shape != (*scales.shape, 16) or scales.ndim != 3:
        raise DataError(f"blocks {tuple(blocks.shape)} do not fit scales {tuple(scales.shape)}")
    check_dtype(dtype)
    shape = (*scales.shape[:2], scales.shape[2] * mxfp4.BLOCK)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=blocks.device)
    if blocks.is_cuda and out.is_contiguous() and (kernel := _kernel()):
        kernel.unpack(blocks.contiguous(), scales.contiguous(), out)
        return out
    pairs = _pairs(dtype, blocks.device)
    step = max(1, _STEP // (shape[2] * dtype.itemsize))
    for expert in range(shape[0]):
        for start in range(0, shape[1], step):
            rows = slice(start, start + step)
            first = scales[expert, rows].to(torch.int32).unsqueeze(-1) << 8
            found = torch.index_select(pairs, 0, (first + blocks[expert, rows]).flatten())
            out[expert, rows].copy_(found.view(dtype).view(-1, shape[2]))
    return out


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ConfigError for a dtype that packed experts cannot compute in."""
    if dtype not in _WIDE:
        raise ConfigError(f"packed experts cannot compute in {dtype}", hint="bfloat16 or float32")


@functools.cache
def _kernel() -> Any:
    """The Triton kernel; None without triton, which comes with torch for CUDA only."""
    try:
        return importlib.import_module("gptoss_tools.models.unpacking_kernel")
    except ImportError:
        return None


@functools.cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two values of every byte under every scale as one wide element, [256 scales * 256 bytes].

    2**128, the scale of byte 255, is no float32; half of it is, times twice the value.
    """
    book = [2 * value for value in mxfp4.CODEBOOK]
    doubled = torch.tensor([(book[b & 15], book[b >> 4]) for b in range(256)], dtype=dtype)
    halves = torch.tensor([2.0 ** (byte - 128) for byte in range(256)], dtype=dtype)
    pairs = doubled * halves.view(256, 1, 1)
    return pairs.view(_WIDE[dtype]).flatten().to(device)
