"""MXFP4 as GGML keeps it: a checkpoint's scale bytes and four-bit codes, in another order.

A checkpoint keeps 16 bytes per block, byte j holding values 2j (low nibble) and 2j + 1, and the
scales in a tensor of their own. GGML keeps 17: the scale byte, then byte j holding values j (low
nibble) and j + 16. Nothing is decoded, so nothing is rounded.
"""

from __future__ import annotations

import numpy as np

from gptoss_tools.errors import DataError

BLOCK_BYTES = 17
"""Bytes of one GGML block of 32 values."""

_BLOCK = np.dtype([("scale", "u1"), ("codes", "V16")])
_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
_HIGH = np.uint64(0xF0F0F0F0F0F0F0F0)
_NIBBLE = np.uint64(4)


def repack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Checkpoint blocks uint8 [..., G, 16] and scales [..., G] to GGML's uint8 [..., G * 17].

    Raises DataError if the two do not belong together.
    """
    bytes_only = blocks.dtype == np.uint8 == scales.dtype
    if blocks.shape != (*scales.shape, 16) or not bytes_only:
        raise DataError(
            f"MXFP4 blocks {blocks.dtype} {blocks.shape} do not fit scales {scales.dtype} "
            f"{scales.shape}"
        )
    # Eight bytes at a time, as one integer each: four times as fast as byte by byte.
    words = np.ascontiguousarray(blocks).reshape(-1, 16).view("<u8")
    first, second = words[:, 0], words[:, 1]  # values 0 to 15, 16 to 31
    codes = np.empty((len(words), 8, 2), np.uint8)
    codes[:, :, 0] = _bytes((first & _LOW) | ((second & _LOW) << _NIBBLE))
    codes[:, :, 1] = _bytes(((first >> _NIBBLE) & _LOW) | (second & _HIGH))
    packed = np.empty(len(words), _BLOCK)
    packed["scale"] = scales.reshape(-1)
    packed["codes"] = codes.reshape(-1, 16).view("V16")[:, 0]
    return packed.view(np.uint8).reshape(*scales.shape[:-1], -1)


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GGML blocks uint8 [..., G * 17] back to checkpoint blocks [..., G, 16] and scales [..., G].

    Raises DataError for a row that is no multiple of 17 bytes.
    """
    if packed.dtype != np.uint8 or packed.shape[-1] % BLOCK_BYTES:
        raise DataError(f"GGML's MXFP4 needs rows of 17 bytes per block, not {packed.shape}")
    shape = (*packed.shape[:-1], packed.shape[-1] // BLOCK_BYTES)
    rows = np.ascontiguousarray(packed).reshape(-1, BLOCK_BYTES)
    even, odd = rows[:, 1::2], rows[:, 2::2]
    blocks = np.empty((len(rows), 16), np.uint8)
    blocks[:, :8] = (even & 0x0F) | (odd << 4)
    blocks[:, 8:] = (even >> 4) | (odd & 0xF0)
    return blocks.reshape(*shape, 16), rows[:, 0].reshape(shape)


def _bytes(words: np.ndarray) -> np.ndarray:
    return words.view(np.uint8).reshape(-1, 8)
