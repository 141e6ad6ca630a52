"""MXFP4: the four-bit encoding of gpt-oss's experts, and where a checkpoint keeps it.

32 neighbours along the input dimension share one E8M0 scale byte `u`, worth 2**(u - 127); each
value is a four-bit E2M1 code, two to a byte, the even neighbour in the low nibble. See "OCP
Microscaling Formats (MX) Specification" v1.0. The one `core` file that needs torch. Reading and
writing of safetensors files is not here, nor is GGML's different nibble order.
"""

from __future__ import annotations

from typing import Literal

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

_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_LARGEST_EXPONENT = 2  # 6.0 = 1.5 * 2**2
_CHUNK = 1 << 18  # blocks per step: bounds the temporaries at some tens of MB


def decode(
    blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Unpack blocks uint8 [..., G, 16] and scales uint8 [..., G] to values [..., G * 32].

    Bit-identical to what transformers computes, transposition aside. float64 holds every code at
    every scale; float32 and bfloat16 overflow to inf for 6 * 2**126 and above. A scale byte of
    255 (NaN in the specification) is decoded as transformers does: inf, and NaN for zeros.
    Raises DataError if the two shapes do not belong together.
    """
    _check_packed(blocks, scales)
    pairs = torch.tensor(
        [(CODEBOOK[byte & 15], CODEBOOK[byte >> 4]) for byte in range(256)],
        dtype=dtype,
        device=blocks.device,
    )
    flat, exponents = blocks.reshape(-1, 16), scales.reshape(-1, 1).to(torch.int32) - 127
    out = torch.empty(flat.shape[0], BLOCK, dtype=dtype, device=blocks.device)
    for start in range(0, flat.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        values = pairs[flat[rows].to(torch.int32)].flatten(1)
        torch.ldexp(values, exponents[rows], out=out[rows])
    return out.reshape(*scales.shape[:-1], scales.shape[-1] * BLOCK)


def encode(
    values: torch.Tensor, rule: Literal["ocp", "ceil"] = "ocp"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round values [..., n * 32] to MXFP4: blocks uint8 [..., n, 16] and scales uint8 [..., n].

    `ocp` is the specification's rule, exponent floor(log2 max|x|) - 2: the largest value may
    saturate at 6, the block's mean error is the smaller one (0.114 against 0.119 relative, on
    Gaussian weights). `ceil` takes the smallest scale at which nothing saturates. Both leave
    values that are MXFP4 already exactly as they are, so repeated packing does not drift. Ties go
    to the even mantissa. Raises DataError for a length that is no multiple of 32, or NaN or inf.
    """
    if values.ndim == 0 or values.shape[-1] % BLOCK:
        raise DataError(f"MXFP4 needs a multiple of 32 values per row, not {tuple(values.shape)}")
    flat = values.reshape(-1, BLOCK)
    blocks = torch.empty(flat.shape[0], 16, dtype=torch.uint8, device=values.device)
    scales = torch.empty(flat.shape[0], dtype=torch.uint8, device=values.device)
    for start in range(0, flat.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        blocks[rows], scales[rows] = _encode_blocks(flat[rows], rule)
    shape = (*values.shape[:-1], values.shape[-1] // BLOCK)
    return blocks.reshape(*shape, 16), scales.reshape(shape)


def _encode_blocks(values: torch.Tensor, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    x = values if values.dtype == torch.float64 else values.to(torch.float32)
    largest = x.abs().amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise DataError("MXFP4 cannot hold NaN or infinity")
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2**exponent, in [1/2, 1)
    shift = exponent.to(torch.int32) - 1 - _LARGEST_EXPONENT
    if rule == "ceil":
        shift = shift + (mantissa > 0.75).to(torch.int32)  # 6 = 0.75 * 2**3 still fits
    elif rule != "ocp":
        raise DataError(f"unknown MXFP4 scale rule {rule!r}", hint="use ocp or ceil")
    shift = torch.where(largest == 0, -127, shift).clamp(-127, 127)
    scaled = torch.ldexp(x, -shift).abs()
    midpoints = torch.tensor(_MIDPOINTS, dtype=x.dtype, device=x.device)
    below = torch.bucketize(scaled, midpoints)
    upto = torch.bucketize(scaled, midpoints, right=True)
    code = torch.where(below % 2 == 1, upto, below)  # differ on a tie only: take the even code
    code = (code + 8 * torch.signbit(x)).to(torch.uint8)
    return code[:, 0::2] | (code[:, 1::2] << 4), (shift + 127).to(torch.uint8).squeeze(-1)


def unpack_parameter(
    blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Checkpoint blocks [E, out, in / 32, 16] to the model's expert parameter [E, in, out]."""
    return decode(blocks, scales, dtype).transpose(-1, -2).contiguous()


def pack_parameter(
    parameter: torch.Tensor, rule: Literal["ocp", "ceil"] = "ocp"
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
