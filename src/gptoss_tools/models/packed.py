"""A gpt-oss whose frozen experts stay packed in MXFP4 while an adapter on its attention learns.

Experts are 91 % of the 20b: packed they take 10.2 GB instead of 38.2 GB in bfloat16, and the whole
model 13.8 GB instead of 41.8. One layer's experts (or `chunk` of them) are unpacked into scratch
for one product, in the forward pass and again in the backward pass, which gives gradients to the
layer's input and routing weights and to no weight. At most 1.1 GB of scratch for the 20b.

The products are those of transformers' `grouped_mm` experts on the dequantised model, the default
of `models.loading`: same function, same shapes and strides, same order. On a CPU the results are
therefore the same bits, whatever `chunk` is. They agree to rounding only

- with transformers' `eager` and `batched_mm` experts, which add up in another order;
- on a GPU, where the unpacked weights lie transposed, as the checkpoint has them (no copy), and
  the kernel may cut its tiles otherwise.

The Triton kernel below has not run yet: no GPU was at hand. Hold it to be unverified until
`pytest -m gpu tests/models/test_packed.py` has passed on one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GptOssConfig
from transformers.integrations.moe import _grouped_linear
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssForCausalLM

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError, first_line
from gptoss_tools.models.layout import INDEX
from gptoss_tools.models.loading import choose_attention, quiet, read_config
from gptoss_tools.models.machine import require_memory, resolve_device

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:  # it comes with torch for CUDA, not with torch for CPUs
    triton = None

_WIDE = {torch.bfloat16: torch.int32, torch.float32: torch.int64}  # two values as one
_ROWS = 64  # rows per step: the temporaries stay in the processor's cache
_STEP = 1024  # values per program of the kernel


def dequantise(
    blocks: Tensor, scales: Tensor, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Unpack blocks uint8 [_N, out, G, 16] and scales uint8 [_N, out, G] to [_N, out, G * 32].

    The bits of `core.mxfp4.decode`, in a third of its time on a CPU. `out`, of any strides, is
    filled and returned. On CUDA a Triton kernel does it where triton is installed. Raises DataError
    for shapes that do not belong together, ConfigError for a dtype other than float32 and bfloat16.
    """
    if blocks.shape != (*scales.shape, 16) or scales.ndim != 3:
        raise DataError(f"blocks {tuple(blocks.shape)} do not fit scales {tuple(scales.shape)}")
    _check(dtype)
    shape = (*scales.shape[:2], scales.shape[2] * mxfp4.BLOCK)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=blocks.device)
    if blocks.is_cuda and triton is not None and out.is_contiguous():
        with torch.cuda.device(blocks.device):
            kernel: Any = _unpack
            kernel = kernel[(triton.cdiv(out.numel(), _STEP),)]
            kernel(blocks.contiguous(), scales.contiguous(), out, out.numel(), STEP=_STEP)
        return out
    pairs, powers = _tables(dtype, blocks.device)
    for expert in range(shape[0]):
        factors = powers[scales[expert].to(torch.int32)].unsqueeze(-1)
        for start in range(0, shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            found = torch.index_select(pairs, 0, blocks[expert, rows].flatten().to(torch.int32))
            values = found.view(dtype).view(-1, shape[2] // mxfp4.BLOCK, mxfp4.BLOCK)
            out[expert, rows].copy_((values * factors[rows]).flatten(1))
    return out


def _check(dtype: torch.dtype) -> None:
    if dtype not in _WIDE:
        raise ConfigError(f"packed experts cannot compute in {dtype}", hint="bfloat16 or float32")


@functools.cache
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two values of every byte as one wide element, doubled, and half of every scale.

    2**128, the scale of byte 255, is no float32; half of it is, so one product suffices.
    """
    book = [2 * value for value in mxfp4.CODEBOOK]
    pairs = torch.tensor([(book[b & 15], book[b >> 4]) for b in range(256)], dtype=dtype)
    powers = torch.tensor([2.0 ** (byte - 128) for byte in range(256)], dtype=dtype)
    return pairs.view(_WIDE[dtype]).flatten().to(device), powers.to(device)


if triton is not None:

    @triton.jit
    def _unpack(blocks, scales, out, total, STEP: tl.constexpr):
        """Not verified on a GPU yet. One value per lane; the two powers of two stay in range."""
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


class _Product(torch.autograd.Function):
    """Rows, sorted by expert, times their expert's packed matrix; a gradient for the rows only."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packed: Any, counts: list[int], chunk: int | None):
        # Not save_for_backward: hooks that move saved tensors elsewhere would move the weights.
        ctx.arguments = packed, counts, chunk
        return _product(rows, packed, counts, chunk, backward=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor):
        packed, counts, chunk = ctx.arguments
        (gradient,) = gradients
        return _product(gradient, packed, counts, chunk, backward=True), None, None, None


def _product(
    rows: Tensor, packed: Any, counts: list[int], chunk: int | None, *, backward: bool
) -> Tensor:
    """rows [_R, in] @ W [in, out], or [_R, out] @ W.T; `counts` says how many rows each expert has.

    Only experts with rows are unpacked.
    """
    blocks, scales = packed
    hit = [expert for expert, count in enumerate(counts) if count]
    _, outputs, groups = scales.shape
    inputs = groups * mxfp4.BLOCK
    if not hit:
        return rows.new_empty(0, inputs if backward else outputs)
    # A processor is fastest with one expert in its cache, a GPU with one launch for all.
    step = min(chunk or (len(hit) if rows.is_cuda else 1), len(hit))
    if rows.is_cuda:  # the kernels take either layout
        scratch = rows.new_empty(step, outputs, inputs)
    else:  # the layout that transformers has, for the same bits
        scratch = rows.new_empty(step, inputs, outputs).transpose(1, 2)
    parts, done = [], 0
    for start in range(0, len(hit), step):
        experts = hit[start : start + step]
        ends = list(accumulate(counts[expert] for expert in experts))
        weights = dequantise(
            _take(blocks, experts), _take(scales, experts), rows.dtype, scratch[: len(experts)]
        )
        parts.append(
            _grouped_linear(
                rows[done : done + ends[-1]],
                weights.transpose(1, 2),
                torch.tensor(ends, dtype=torch.int32, device=rows.device),
                is_transposed=not backward,
            )
        )
        done += ends[-1]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _take(tensor: Tensor, experts: Sequence[int]) -> Tensor:
    """These experts, without a copy where they are neighbours."""
    first, end = experts[0], experts[-1] + 1
    return tensor[first:end] if end - first == len(experts) else tensor[list(experts)]


class PackedExperts(nn.Module):
    """The experts of one gpt-oss layer, packed: a drop-in for transformers' GptOssExperts.

    Takes sizes and biases from `base`, whose weights may be on the meta device; blocks and scales
    are buffers under the checkpoint's names, empty until a checkpoint fills them. The biases' dtype
    is the one computed in. `chunk` experts are unpacked at a time; None is one on a CPU, and
    all that have tokens on a GPU.
    """

    _apply_gate: Any = GptOssExperts._apply_gate

    def __init__(self, base: Any, chunk: int | None = None):
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ConfigError(f"chunk is {chunk}, and at least one expert is needed")
        self.num_experts, self.chunk = base.num_experts, chunk
        self.alpha, self.limit = base.alpha, base.limit
        for name in mxfp4.PACKED:
            weight = getattr(base, name)  # [_N, in, out]
            experts, inputs, outputs = weight.shape
            shape = (experts, outputs, inputs // mxfp4.BLOCK)
            empty = functools.partial(torch.empty, dtype=torch.uint8, device=weight.device)
            self.register_buffer(f"{name}_blocks", empty((*shape, mxfp4.BLOCK // 2)))
            self.register_buffer(f"{name}_scales", empty(shape))
            setattr(self, f"{name}_bias", getattr(base, f"{name}_bias"))

    def forward(
        self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor
    ) -> Tensor:
        """The weighted sum [_T, _H] of each token's experts; indices and weights are [_T, top_k].

        Waits for the GPU once, to learn how many tokens each expert has.
        """
        top_k = router_indices.shape[-1]
        experts, order = torch.sort(router_indices.reshape(-1))
        counts = torch.bincount(experts, minlength=self.num_experts).tolist()
        rows = self._linear("gate_up_proj", hidden_states[order // top_k], experts, counts)
        rows = self._linear("down_proj", self._apply_gate(rows), experts, counts)
        rows = rows * routing_weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        rows = rows[back].view(-1, top_k, hidden_states.shape[-1])
        return rows.sum(dim=1).to(hidden_states.dtype)

    def _linear(self, name: str, rows: Tensor, experts: Tensor, counts: list[int]) -> Tensor:
        bias = getattr(self, f"{name}_bias")
        packed = getattr(self, f"{name}_blocks"), getattr(self, f"{name}_scales")
        product: Any = _Product.apply(rows.to(bias.dtype), packed, counts, self.chunk)
        return product + bias[experts]

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, chunk={self.chunk}"


def skeleton(
    config: GptOssConfig,
    dtype: torch.dtype,
    *,
    attn_implementation: str = "eager",
    chunk: int | None = None,
) -> GptOssForCausalLM:
    """A model with packed experts and no numbers, all on the meta device."""
    with torch.device("meta"), quiet():
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    for layer in model.model.layers:
        layer.mlp.experts = PackedExperts(layer.mlp.experts, chunk)
    return model


def load_packed(
    folder: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attn_implementation: str = "eager",
    chunk: int | None = None,
) -> GptOssForCausalLM:
    """Load an MXFP4 checkpoint in eval mode, experts as they are on disk, the rest in `dtype`.

    Tensors come one at a time, so no more than the model and one tensor is held. PEFT's adapters on
    the attention, gradient checkpointing and `generate` work as on any gpt-oss. Raises ConfigError
    for a dtype other than float32 and bfloat16 or a model without MXFP4 experts, MachineError for
    too little memory, DataError for a tensor that is missing or of another shape.
    """
    path, target = Path(folder), resolve_device(str(device))
    _check(dtype)
    config = read_config(path)
    stored = getattr(config, "quantization_config", None)
    if not stored or stored.get("quant_method") != mxfp4.QUANTIZATION_CONFIG["quant_method"]:
        raise ConfigError(f"model {path} holds no MXFP4 experts that could stay packed")
    # For transformers this is no quantised model: it can be trained, and saves as it is.
    del config.quantization_config
    attention = choose_attention(attn_implementation, target, for_training=True)
    require_memory(config, target, dtype, quantized=True)
    model: Any = skeleton(config, dtype, attn_implementation=attention, chunk=chunk)
    _fill(model, path, target)
    with target:  # holds computed buffers only, which no checkpoint has
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.tie_weights()
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


def _fill(model: nn.Module, folder: Path, device: torch.device) -> None:
    """Give every parameter and stored buffer its tensor, copied, so that no file stays open."""
    stored = model.state_dict()
    slots = dict(chain(model.named_parameters(), model.named_buffers()))
    missing = {name for name in slots if name in stored}
    for name, tensor in _tensors(folder):
        if name not in missing:
            continue
        slot = slots[name]
        if slot.shape != tensor.shape:
            raise DataError(f"{name} in {folder} is {tuple(tensor.shape)}, not {tuple(slot.shape)}")
        missing.remove(name)
        value = torch.empty_like(slot, device=device, requires_grad=False).copy_(tensor)
        parent, _, leaf = name.rpartition(".")
        is_parameter = isinstance(slot, nn.Parameter)
        setattr(model.get_submodule(parent), leaf, nn.Parameter(value) if is_parameter else value)
    if missing:
        raise DataError(f"checkpoint {folder} lacks {min(missing)} ({len(missing)} tensors in all)")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the files that the checkpoint's index names."""
    index = folder / INDEX
    try:
        files = {"model.safetensors"}
        if index.is_file():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        for file_name in sorted(files):
            with safe_open(folder / file_name, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"checkpoint {folder} cannot be read: {first_line(error)}") from error
