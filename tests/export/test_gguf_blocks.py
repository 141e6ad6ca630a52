"""GGML's order of MXFP4 bytes: nothing is lost on the way there, and the values are the same."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import DataError
from gptoss_tools.export.gguf_blocks import repack, unpack


@st.composite
def packed(draw, largest_scale=255):
    """Blocks [E, out, G, 16] and scales [E, out, G] with any bytes at all."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)))
    scales = st.integers(0, largest_scale)
    return (
        draw(arrays(np.uint8, (*shape, 16))),
        draw(arrays(np.uint8, shape, elements=scales)),
    )


def test_one_block_by_hand():
    # Values 0 to 31 have the codes 0, 1, ... 15, 0, 1, ... 15: a checkpoint's byte j holds codes
    # 2j and 2j + 1 (low nibble first), GGML's holds values j and j + 16, which have the same code.
    codes = np.arange(32, dtype=np.uint8) % 16
    block = codes[0::2] | (codes[1::2] << 4)
    assert block[:2].tolist() == [0x10, 0x32]
    ours = repack(block.reshape(1, 16), np.array([130], np.uint8))
    assert ours.tolist() == [130, *(code * 0x11 for code in range(16))]


@given(packed())
def test_repacking_is_a_bijection(parts):
    blocks, scales = parts
    packed_rows = repack(blocks, scales)
    assert packed_rows.shape == (*scales.shape[:-1], scales.shape[-1] * 17)
    again = unpack(packed_rows)
    assert np.array_equal(again[0], blocks) and np.array_equal(again[1], scales)


@given(arrays(np.uint8, (2, 34)))
def test_unpacking_is_one_too(rows):
    assert np.array_equal(repack(*unpack(rows)), rows)


def decode_as_documented(row: np.ndarray) -> list[float]:
    """By GGML's definition: value j is the low nibble of byte j, value j + 16 the high one."""
    values = []
    for start in range(0, len(row), 17):
        scale = 2.0 ** (int(row[start]) - 127)
        codes = row[start + 1 : start + 17]
        values += [mxfp4.CODEBOOK[code & 15] * scale for code in codes]
        values += [mxfp4.CODEBOOK[code >> 4] * scale for code in codes]
    return values


@given(packed(largest_scale=254))  # 255 is NaN
@settings(deadline=None)
def test_the_values_are_the_checkpoint_s_to_the_bit(parts):
    blocks, scales = parts
    rows = repack(blocks, scales).reshape(-1, scales.shape[-1] * 17)
    theirs = np.array([decode_as_documented(row) for row in rows])
    ours = mxfp4.decode(torch.from_numpy(blocks), torch.from_numpy(scales), torch.float64)
    assert np.array_equal(
        theirs.view(np.uint64), ours.numpy().reshape(theirs.shape).view(np.uint64)
    )


@given(packed(largest_scale=254))
@settings(deadline=None)
def test_the_gguf_library_reads_the_same_values(parts):
    blocks, scales = parts
    with np.errstate(over="ignore"):
        theirs = gguf.quants.dequantize(repack(blocks, scales), GGMLQuantizationType.MXFP4)
    ours = mxfp4.decode(torch.from_numpy(blocks), torch.from_numpy(scales), torch.float32)
    assert np.array_equal(theirs, ours.numpy())  # it has one zero only, so not to the bit


def test_rows_of_a_fused_matrix_may_be_strided():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 2, 16), np.uint8)
    scales = rng.integers(0, 256, (6, 2), np.uint8)
    whole = repack(blocks, scales)
    assert np.array_equal(repack(blocks[1::2], scales[1::2]), whole[1::2])


def test_parts_that_do_not_belong_together_are_refused():
    blocks, scales = np.zeros((2, 3, 16), np.uint8), np.zeros((2, 2), np.uint8)
    with pytest.raises(DataError, match="do not fit"):
        repack(blocks, scales)
    with pytest.raises(DataError, match="do not fit"):
        repack(blocks, np.zeros((2, 3), np.int64))
    with pytest.raises(DataError, match="17 bytes"):
        unpack(np.zeros((2, 16), np.uint8))
