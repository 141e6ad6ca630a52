"""The MXFP4 codec against the specification's tables and against transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import DataError

BYTES = st.integers(0, 255)
RULES = st.sampled_from(["ocp", "ceil", "best"])


def random_packed(seed, shape, top=255):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(0, top, shape, generator=generator).to(torch.uint8)
    return blocks, scales


def test_the_low_nibble_is_the_even_neighbour_and_every_code_has_its_value():
    # byte j = code 2j | code (2j + 1) << 4, so 0x10 0x32 ... 0xFE spells the codes 0 1 2 3 ... 15
    row = [code | (code + 1) << 4 for code in range(0, 16, 2)]
    blocks = torch.tensor([row + row], dtype=torch.uint8)
    values = mxfp4.decode(blocks, torch.tensor([127], dtype=torch.uint8), torch.float32)
    expected = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert values.tolist() == expected * 2
    assert torch.signbit(values[8]) and not torch.signbit(values[0])


def test_the_scale_byte_is_a_power_of_two_with_bias_127():
    blocks = torch.full((3, 16), 0x22, dtype=torch.uint8)  # code 2 = 1.0 everywhere
    scales = torch.tensor([0, 128, 254], dtype=torch.uint8)
    values = mxfp4.decode(blocks, scales, torch.float64).reshape(3, 32)
    assert values[:, 0].tolist() == [2.0**-127, 2.0, 2.0**127]


def test_every_code_at_every_scale_survives_decode_and_encode():
    codes = torch.arange(16).repeat(2)
    row = (codes[0::2] | codes[1::2] << 4).to(torch.uint8)
    blocks, scales = row.expand(255, 16), torch.arange(255, dtype=torch.uint8)
    values = mxfp4.decode(blocks, scales, torch.float64).reshape(255, 32)
    for rule in ("ocp", "ceil", "best"):  # the row holds 6, so the scale comes back too
        again = mxfp4.encode(values, rule)
        assert torch.equal(again[0].reshape(255, 16), blocks)
        assert torch.equal(again[1].reshape(255), scales)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_decoding_is_bit_identical_to_transformers(seed, experts, rows, groups):
    blocks, scales = random_packed(seed, (experts, rows, groups), top=256)
    for dtype in (torch.bfloat16, torch.float32):
        ours = mxfp4.unpack_parameter(blocks, scales, dtype)
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        width = torch.int16 if dtype == torch.bfloat16 else torch.int32
        assert torch.equal(ours.view(width), theirs.view(width))


@given(st.integers(0, 2**32), RULES, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_values_that_are_mxfp4_already_are_left_alone(seed, rule, groups):
    values = mxfp4.decode(*random_packed(seed, (3, groups)), torch.float64)
    assert torch.equal(mxfp4.decode(*mxfp4.encode(values, rule), torch.float64), values)


@given(st.lists(BYTES, min_size=16, max_size=16), st.integers(0, 250))
@settings(max_examples=60, deadline=None)
def test_float32_is_exact_below_the_overflow(row, scale):
    blocks = torch.tensor([row], dtype=torch.uint8)
    values = mxfp4.decode(blocks, torch.tensor([scale], dtype=torch.uint8), torch.float32)
    assert torch.equal(mxfp4.decode(*mxfp4.encode(values), torch.float32), values)


@given(st.lists(st.floats(-100, 100, width=32), min_size=32, max_size=32))
@settings(max_examples=200, deadline=None)
def test_no_value_ends_further_away_than_half_the_gap_of_its_block(row):
    values = torch.tensor(row)
    largest = values.abs().max()
    # ceil: nothing saturates and the widest gap of the code is 2 (from 4 to 6) at a scale of at
    # most largest / 3 (the next smaller scale, s / 2, has 6 * s / 2 < largest): half of 2 * s
    error = (mxfp4.decode(*mxfp4.encode(values, "ceil"), torch.float32) - values).abs().max()
    assert error <= largest / 3 + 1e-30


def test_ties_go_to_the_even_mantissa_and_signs_survive():
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    row = torch.tensor(ties + [-t for t in ties] + [6.0] + [0.0] * 17)
    values = mxfp4.decode(*mxfp4.encode(row), torch.float32)
    assert values[:14].tolist() == even + [-v for v in even]
    assert torch.signbit(values[7])


def test_the_two_rules_differ_where_the_largest_value_is_seven():
    # 7 = 1.75 * 2**2: ocp keeps scale 1 and saturates at 6; ceil takes scale 2, 3.5 -> 4 (even)
    row = torch.zeros(32)
    row[0] = 7.0
    assert mxfp4.encode(row, "ocp")[1].item() == 127
    assert mxfp4.decode(*mxfp4.encode(row, "ocp"), torch.float32)[0] == 6.0
    assert mxfp4.encode(row, "ceil")[1].item() == 128
    assert mxfp4.decode(*mxfp4.encode(row, "ceil"), torch.float32)[0] == 8.0


@given(
    st.lists(st.integers(1, 5), max_size=3),
    st.integers(1, 4),
    st.integers(1, 9),
    RULES,
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_in_any_chunks_gives_what_one_chunk_gives(shape, groups, chunk, rule, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, groups * 32, generator=generator)
    whole = mxfp4.encode(values, rule)
    decoded = mxfp4.decode(*whole, torch.float32)
    assert whole[0].shape == (*shape, groups, 16) and whole[1].shape == (*shape, groups)
    assert decoded.shape == values.shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mxfp4, "_CHUNK", chunk)
        parts = mxfp4.encode(values, rule)
        assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])
        assert torch.equal(mxfp4.decode(*parts, torch.float32), decoded)


@pytest.mark.parametrize("rule", ["ocp", "ceil", "best"])
@pytest.mark.parametrize("code", range(16))
def test_a_block_of_one_code_keeps_its_value_at_every_scale(code, rule):
    # Alone, a code below 4 may come back as another code at a smaller scale: the value counts.
    blocks = torch.full((255, 1, 16), code | code << 4, dtype=torch.uint8)
    scales = torch.arange(255, dtype=torch.uint8)[:, None]
    values = mxfp4.decode(blocks, scales, torch.float64)
    again = mxfp4.decode(*mxfp4.encode(values, rule), torch.float64)
    expected = [mxfp4.CODEBOOK[code] * 2.0 ** (scale - 127) for scale in range(255)]
    assert values[:, 0].tolist() == expected
    assert torch.equal(again, values)


@given(st.integers(0, 2**32), st.floats(0.5, 8))
@settings(max_examples=60, deadline=None)
def test_the_best_rule_is_never_worse_than_the_two_it_chooses_from(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(64, 32, generator=generator).double()
    values = values.sign() * values.abs() ** spread
    errors = {
        rule: (mxfp4.decode(*mxfp4.encode(values, rule), torch.float64) - values).square().sum(1)
        for rule in ("ocp", "ceil", "best")
    }
    least = torch.minimum(errors["ocp"], errors["ceil"])
    assert torch.allclose(errors["best"], least, rtol=1e-12, atol=0)


def test_a_parameter_is_packed_along_its_input_dimension():
    parameter = torch.zeros(2, 64, 32)  # [E, in, out]
    parameter[1, 33, 5] = 3.0  # largest of its block: 3 = 1.5 * 2**1, exponent 1 - 2 = -1, code 7
    blocks, scales = mxfp4.pack_parameter(parameter)
    assert blocks.shape == (2, 32, 2, 16) and scales.shape == (2, 32, 2)
    assert scales[1, 5, 1] == 126 and blocks[1, 5, 1, 0] == 0x70  # element 1: high nibble
    assert torch.equal(mxfp4.unpack_parameter(blocks, scales, torch.float32), parameter)


def test_names_go_to_tensors_and_back():
    name = "model.layers.3.mlp.experts.gate_up_proj"
    assert mxfp4.is_packed(name) and not mxfp4.is_packed(name + "_bias")
    assert mxfp4.packed_names(name) == (name + "_blocks", name + "_scales")
    assert [mxfp4.parameter_name(n) for n in mxfp4.packed_names(name)] == [name, name]
    assert mxfp4.parameter_name("model.norm.weight") == "model.norm.weight"


@pytest.mark.parametrize(
    "call",
    [
        lambda: mxfp4.encode(torch.zeros(33)),
        lambda: mxfp4.encode(torch.full((32,), float("nan"))),
        lambda: mxfp4.encode(torch.full((32,), float("inf"))),
        lambda: mxfp4.decode(torch.zeros(2, 16).byte(), torch.zeros(3).byte()),
        lambda: mxfp4.decode(torch.zeros(2, 16), torch.zeros(2).byte()),
    ],
)
def test_what_mxfp4_cannot_hold_is_refused(call):
    with pytest.raises(DataError, match="MXFP4"):
        call()
