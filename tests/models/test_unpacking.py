"""MXFP4 to numbers: the bits of the codec, from torch and from the Triton kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import DataError
from gptoss_tools.models.unpacking import dequantise

BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


def every_byte_and_scale() -> tuple[torch.Tensor, torch.Tensor]:
    """256 scales, and under each of them 16 blocks of 16 bytes: every byte once."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 256, 1, 1)
    return blocks, torch.arange(256, dtype=torch.uint8).view(1, 256, 1).repeat(1, 1, 16)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 140), st.integers(1, 3)),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(list(BITS)),
    transposed=st.booleans(),
)
def test_dequantise_gives_the_bits_of_the_codec_for_any_shape_code_and_scale(
    shape, seed, dtype, transposed
):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    out = None
    if transposed:
        out = torch.empty(shape[0], shape[2] * 32, shape[1], dtype=dtype).transpose(1, 2)
    found = dequantise(blocks, scales, dtype, out)
    assert out is None or found is out
    bits = BITS[dtype]
    expected = mxfp4.decode(blocks, scales, dtype)
    assert torch.equal(found.contiguous().view(bits), expected.view(bits))


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="do not fit"):
        dequantise(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 4), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernel_gives_the_bits_of_the_codec_for_every_byte_and_scale(dtype):
    blocks, scales = every_byte_and_scale()
    found = dequantise(blocks.cuda(), scales.cuda(), dtype).cpu()
    expected = mxfp4.decode(blocks, scales, dtype)
    assert torch.equal(found.view(BITS[dtype]), expected.view(BITS[dtype]))


INTERPRETED = """
import torch
from test_unpacking import BITS, every_byte_and_scale, mxfp4
from gptoss_tools.models.unpacking_kernel import unpack

blocks, scales = every_byte_and_scale()
for dtype, bits in BITS.items():
    out = torch.empty(1, 256, 512, dtype=dtype)
    unpack(blocks, scales, out)
    # The interpreter rounds bfloat16's subnormal numbers, those of scales 0 and 1, to zero.
    first = 2 if dtype == torch.bfloat16 else 0
    expected = mxfp4.decode(blocks, scales, dtype)[:, first:]
    assert torch.equal(out[:, first:].view(bits), expected.view(bits)), dtype
odd = torch.empty(1, 21, 64)  # 1344 values: the last program is partly outside
few = blocks[:, :21, :2].contiguous(), scales[:, 110:131, :2].contiguous()
unpack(*few, odd)
assert torch.equal(odd, mxfp4.decode(*few, torch.float32))
print("the same bits")
"""


def test_the_kernel_under_triton_s_interpreter_gives_the_bits_of_the_codec():
    pytest.importorskip("triton", reason="triton comes with torch for CUDA only")
    paths = [os.path.dirname(__file__), *filter(None, sys.path)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "the same bits\n", done.stderr
