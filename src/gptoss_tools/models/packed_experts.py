"""The experts of one gpt-oss layer, packed in MXFP4: outputs and gradients from scratch weights.

A product unpacks the experts that have tokens into scratch, `chunk` of them at a time, and uses
them at once; in the forward pass and again in the backward pass, which gives gradients to the
layer's input and routing weights and to no weight. With gradient checkpointing a layer is computed
a second time just before its backward pass: what is unpacked then waits for it in `Kept`, so that
a weight is unpacked twice in a step, not three times. Nothing of this changes a number.

The products are those of transformers' `grouped_mm` experts on the dequantised model, the default
of `models.loading`: same function, same shapes and strides, same order. On a CPU the results are
therefore the same bits, whatever `chunk` is. They agree to rounding only

- with transformers' `eager` and `batched_mm` experts, which add up in another order;
- on a GPU, where the unpacked weights lie transposed, as the checkpoint has them (no copy), and
  the kernel may cut its tiles otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_linear
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError
from gptoss_tools.models.unpacking import dequantise


class Kept:
    """One layer's unpacked weights, from its recomputation to its backward pass right after it.

    The layers of a model share one, and the room in it, which is taken once and kept.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, Tensor] = {}
        self._held: dict[str, tuple[Any, ...]] = {}

    def room(self, layer: PackedExperts, name: str, experts: list[int], like: Tensor) -> Any:
        """Room to unpack these experts into, where a backward pass is under way, which will ask."""
        if (task := torch._C._current_graph_task_id()) < 0:
            return None
        room = self._rooms.get(name)
        if room is None or room.dtype != like.dtype or room.device != like.device:
            room = self._rooms[name] = layer.scratch(name, layer.num_experts, like)
        self._held[name] = (task, layer, experts)
        return room

    def take(self, layer: PackedExperts, name: str, experts: list[int]) -> Tensor | None:
        """The same room, filled, once; None unless this very backward pass has asked for it."""
        wanted = (torch._C._current_graph_task_id(), layer, experts)
        return self._rooms[name] if self._held.pop(name, None) == wanted else None


class _Product(torch.autograd.Function):
    """Rows, sorted by expert, times their expert's packed matrix; a gradient for the rows only."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: PackedExperts, name: str, counts: list[int]):
        # Not save_for_backward: hooks that move saved tensors elsewhere would move the weights.
        ctx.arguments = layer, name, counts
        return _product(rows, layer, name, counts, backward=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor):
        (gradient,) = gradients
        return _product(gradient, *ctx.arguments, backward=True), None, None, None


def _product(
    rows: Tensor, layer: PackedExperts, name: str, counts: list[int], *, backward: bool
) -> Tensor:
    """rows [_R, in] @ W [in, out], or [_R, out] @ W.T; `counts` says how many rows each expert has.

    Only experts with rows are unpacked.
    """
    blocks, scales = layer.packed(name)
    hit = [expert for expert, count in enumerate(counts) if count]
    if not hit:
        _, outputs, groups = scales.shape
        return rows.new_empty(0, groups * mxfp4.BLOCK if backward else outputs)
    # A processor is fastest with one expert in its cache, a GPU with one launch for all.
    step = min(layer.chunk or (len(hit) if rows.is_cuda else 1), len(hit))
    filled = layer.kept.take(layer, name, hit) if backward else None
    room = filled if backward else layer.kept.room(layer, name, hit, rows)
    scratch = layer.scratch(name, step, rows) if room is None else room
    parts, done = [], 0
    for start in range(0, len(hit), step):
        experts = hit[start : start + step]
        ends = list(accumulate(counts[expert] for expert in experts))
        first = 0 if room is None else start
        weights = scratch[first : first + len(experts)]
        if filled is None:
            dequantise(_take(blocks, experts), _take(scales, experts), rows.dtype, weights)
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
    are frozen parameters under the checkpoint's names, empty until a checkpoint fills them. The
    biases' dtype is the one computed in. `chunk` experts are unpacked at a time; None is one on a
    CPU, and all that have tokens on a GPU. `kept` is to be one for all layers of a model.
    """

    _apply_gate: Any = GptOssExperts._apply_gate

    def __init__(self, base: Any, chunk: int | None = None, kept: Kept | None = None):
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ConfigError(f"chunk is {chunk}, and at least one expert is needed")
        self.num_experts, self.chunk, self.kept = base.num_experts, chunk, kept or Kept()
        self.alpha, self.limit = base.alpha, base.limit
        for name in mxfp4.PACKED:
            weight = getattr(base, name)  # [_N, in, out]
            experts, inputs, outputs = weight.shape
            shape = (experts, outputs, inputs // mxfp4.BLOCK)
            empty = functools.partial(torch.empty, dtype=torch.uint8, device=weight.device)
            # Not buffers: DistributedDataParallel would send those around in every step.
            for part, size in (("blocks", (*shape, mxfp4.BLOCK // 2)), ("scales", shape)):
                setattr(self, f"{name}_{part}", nn.Parameter(empty(size), requires_grad=False))
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
        product: Any = _Product.apply(rows.to(bias.dtype), self, name, counts)
        return product + bias[experts]

    def packed(self, name: str) -> tuple[Tensor, Tensor]:
        """Blocks [_N, out, in / 32, 16] and scales [_N, out, in / 32] of `gate_up_proj`, say."""
        return getattr(self, f"{name}_blocks"), getattr(self, f"{name}_scales")

    def scratch(self, name: str, experts: int, like: Tensor) -> Tensor:
        """Room [experts, out, in] for unpacked weights, with the dtype and device of `like`."""
        _, outputs, groups = self.packed(name)[1].shape
        inputs = groups * mxfp4.BLOCK
        if like.is_cuda:  # the kernels take either layout
            return like.new_empty(experts, outputs, inputs)
        return like.new_empty(experts, inputs, outputs).transpose(1, 2)  # as transformers has it

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, chunk={self.chunk}"
