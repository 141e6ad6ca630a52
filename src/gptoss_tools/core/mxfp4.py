"""MXFP4: the four-bit encoding of gpt-oss's experts, and where a checkpoint keeps it.

32 neighbours along the input dimension share one E8M0 scale byte `u`, worth 2**(u - 127); each
value is a four-bit E2M1 code, two to a byte, the even neighbour in the low nibble. See "OCP
Microscaling Formats (MX) Specification" v1.0. The one `core` file that needs torch. Reading and
writing of safetensors files is not here, nor is GGML's different nibble order.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch

from gptoss_tools.errors import DataError

BLOCK = 32
"""Values that share one scale."""

CODEBOOK = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The value of each E2M1 code: sign bit, two exponent bits, one mantissa bit."""

PACKED = ("gate_up_proj", "down_proj")
"""Expert parameters that a checkpoint stores as `NAME_blocks` and `NAME_scales`."""

NOT_CONVERTED = [
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
]
"""`modules_to_not_convert` of the published checkpoints: what stays bf16."""

QUANTIZATION_CONFIG = {"modules_to_not_convert": NOT_CONVERTED, "quant_method": "mxfp4"}

Rule = Literal["ocp", "ceil", "best"]
"""How a block's scale is chosen, see `encode`."""

_LARGEST_EXPONENT = 2  # 6.0 = 1.5 * 2**2
_CHUNK = 1 << 12  # blocks per step, so that the temporaries stay in the processor's cache
_PAIRS = {2: torch.int32, 4: torch.int64, 8: torch.complex128}  # two values as one, by width


def decode(
    blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Unpack blocks uint8 [..., G, 16] and scales uint8 [..., G] to values [..., G * 32].

    Bit-identical to what transformers computes, transposition aside. float64 holds every code at
    every scale; float32 and bfloat16 overflow to inf for 6 * 2**126 and above. A scale byte of
    255, NaN in the specification, counts as 2**128, as it does there.
    Raises DataError if the two shapes do not belong together.
    """
    _check_packed(blocks, scales)
    pairs = _pairs(dtype, blocks.device)
    flat = blocks.reshape(-1, 16)
    # 2**128 is no float32, so the factor comes in two halves.
    exponents = scales.reshape(-1, 1).to(torch.int32) - 127
    half, rest = _power(exponents // 2, dtype), _power(exponents - exponents // 2, dtype)
    out = torch.empty(flat.shape[0], BLOCK, dtype=dtype, device=blocks.device)
    for start in range(0, flat.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        found = torch.index_select(pairs, 0, flat[rows].flatten().to(torch.int32))
        torch.mul(found.view(dtype).reshape(-1, BLOCK), half[rows], out=out[rows])
        out[rows] *= rest[rows]
    return out.reshape(*scales.shape[:-1], scales.shape[-1] * BLOCK)


@functools.cache
def _pairs(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The two values of every byte, as one element of twice the width."""
    values = [(CODEBOOK[byte & 15], CODEBOOK[byte >> 4]) for byte in range(256)]
    pairs = torch.tensor(values, dtype=dtype, device=device)
    return pairs.view(_PAIRS[pairs.element_size()]).flatten()


def encode(values: torch.Tensor, rule: Rule = "ocp") -> tuple[torch.Tensor, torch.Tensor]:
    """Round values [..., n * 32] to MXFP4: blocks uint8 [..., n, 16] and scales uint8 [..., n].

    `ocp` is the specification's rule, exponent floor(log2 max|x|) - 2: the largest value may
    saturate at 6. `ceil` takes the smallest scale at which nothing saturates. `best` takes, of
    these two, the one with the smaller squared error. Relative errors on Gaussian weights: 0.115,
    0.116, 0.112. All leave values that are MXFP4 already exactly as they are, so repeated packing
    does not drift. Ties go to the even mantissa. Raises DataError for a length that is no multiple
    of 32, or NaN or inf.
    """
    if values.ndim == 0 or values.shape[-1] % BLOCK:
        raise DataError(f"MXFP4 needs a multiple of 32 values per row, not {tuple(values.shape)}")
    if rule not in get_args(Rule):
        raise DataError(f"unknown MXFP4 scale rule {rule!r}", hint="use ocp, ceil or best")
    flat = values.reshape(-1, BLOCK)
    blocks = torch.empty(flat.shape[0], 16, dtype=torch.uint8, device=values.device)
    scales = torch.empty(flat.shape[0], dtype=torch.uint8, device=values.device)
    for start in range(0, flat.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        blocks[rows], scales[rows] = _encode_blocks(flat[rows], rule)
    shape = (*values.shape[:-1], values.shape[-1] // BLOCK)
    return blocks.reshape(*shape, 16), scales.reshape(shape)


def _encode_blocks(values: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    x = values if values.dtype == torch.float64 else values.to(torch.float32)
    largest = x.abs().amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise DataError("MXFP4 cannot hold NaN or infinity")
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2**exponent, in [1/2, 1)
    shift = exponent.to(torch.int32) - 1 - _LARGEST_EXPONENT
    shift = torch.where(largest == 0, -127, shift).clamp(-127, 127)
    scaled = (x * _power(-shift, x.dtype)).abs()
    code = _nearest(scaled)
    if rule == "ceil":
        larger = (mantissa > 0.75) & (shift < 127)  # 6 = 0.75 * 2**3 still fits
    elif rule == "best":
        # Only a largest value beyond 6 can gain: nothing else saturates.
        larger = (_error(scaled / 2, _nearest(scaled / 2)) * 4 < _error(scaled, code)) & (
            shift < 127
        )
    else:
        larger = torch.zeros_like(mantissa, dtype=torch.bool)
    if bool(larger.any()):
        code = torch.where(larger, _nearest(scaled / 2), code)
        shift = shift + larger.to(torch.int32)
    code = (code + 8 * torch.signbit(x)).to(torch.uint8)
    return code[:, 0::2] | (code[:, 1::2] << 4), (shift + 127).to(torch.uint8).squeeze(-1)


def _nearest(magnitudes: torch.Tensor) -> torch.Tensor:
    """The codes 0 to 7 nearest to values >= 0, in the values' own type; ties to the even code.

    Code over value is a broken line of slopes 2, 1 and 1/2: the least of its three straight lines.
    """
    code = torch.round(magnitudes * 2)
    code = torch.minimum(code, torch.round(magnitudes) + 2)
    return torch.minimum(code, torch.round(magnitudes / 2) + 4).clamp_(max=7)


def _error(magnitudes: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Squared error of a block in units of its scale, [blocks, 1]."""
    table = torch.tensor(CODEBOOK[:8], dtype=magnitudes.dtype, device=magnitudes.device)
    values = torch.index_select(table, 0, code.flatten().to(torch.int32)).view_as(magnitudes)
    return (values - magnitudes).square_().sum(-1, keepdim=True)


def _power(exponents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """2**exponents, exactly, for exponents from -127 to 127."""
    return torch.ldexp(torch.ones_like(exponents, dtype=dtype), exponents)


def unpack_parameter(
    blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Checkpoint blocks [E, out, in / 32, 16] to the model's expert parameter [E, in, out]."""
    return decode(blocks, scales, dtype).transpose(-1, -2).contiguous()


def pack_parameter(
    parameter: torch.Tensor, rule: Rule = "ocp"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's expert parameter [E, in, out] to blocks [E, out, in / 32, 16] and scales."""
    return encode(parameter.transpose(-1, -2), rule)


def round_parameter(parameter: torch.Tensor) -> torch.Tensor:
    """The nearest values [E, in, out] that a packed checkpoint can hold, in the same dtype."""
    return unpack_parameter(*pack_parameter(parameter), dtype=parameter.dtype)


def is_packed(parameter_name: str) -> bool:
    """Whether a checkpoint stores this model parameter as MXFP4."""
    return parameter_name.endswith(tuple(f".mlp.experts.{name}" for name in PACKED))


def packed_names(parameter_name: str) -> tuple[str, str]:
    """`...gate_up_proj` -> its two tensor names in a checkpoint."""
    return f"{parameter_name}_blocks", f"{parameter_name}_scales"


def parameter_name(tensor_name: str) -> str:
    """The model parameter that a checkpoint tensor belongs to; biases are parameters themselves."""
    for suffix in ("_blocks", "_scales"):
        stem = tensor_name.removesuffix(suffix)
        if stem != tensor_name and is_packed(stem):
            return stem
    return tensor_name


def _check_packed(blocks: torch.Tensor, scales: torch.Tensor) -> None:
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise DataError(f"MXFP4 blocks and scales are bytes, not {blocks.dtype}, {scales.dtype}")
    if blocks.shape != (*scales.shape, 16):
        raise DataError(
            f"MXFP4 blocks {tuple(blocks.shape)} do not fit scales {tuple(scales.shape)}"
        )
