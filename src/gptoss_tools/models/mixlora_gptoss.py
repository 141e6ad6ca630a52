"""MixLoRA on gpt-oss: LoRA experts over all base experts, the base router left as it is.

LoRA expert k adds its deltas to gate, up and down of whichever base experts the base router picks:
out = sum_k R_k(x) sum_j base_j(x) FFN_j(x; LoRA_k). The base's gate and up are computed once per
(token, base expert) and shared, and down once too, on the weighted sum (see `mixlora_dense`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import _grouped_linear
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.mixlora_block import ProjectionsBlock
from gptoss_tools.models.mixlora_config import MixLoraConfig
from gptoss_tools.models.mixlora_layers import Recorder, Routing


class GptOssBlock(ProjectionsBlock):
    """Routed LoRA experts on the experts of one gpt-oss layer."""

    def __init__(self, config: MixLoraConfig, mlp: GptOssMLP, layer: int, recorder: Recorder):
        experts: Any = mlp.experts
        weight = getattr(experts, "gate_up_proj", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ConfigError(
                "MixLoRA's form `shared` needs the experts' own numbers, and these are packed",
                hint="load the base dequantised, or use form `parallel`",
            )
        if getattr(experts, "_is_expert_parallel", False):
            raise ConfigError("MixLoRA's form `shared` needs every expert on one device")
        sizes = experts.hidden_size, experts.intermediate_size
        super().__init__(config, *sizes, layer, recorder)

    def path(
        self, mlp: Any, original: Callable[[Tensor], Any], x: Tensor
    ) -> tuple[Tensor, tuple[Any, ...], Routing]:
        experts = mlp.experts
        flat = x.reshape(-1, x.shape[-1])  # [_T, _H]
        routing = self.route(flat)
        _, scores, chosen = mlp.router(flat)  # [_T, j]
        # Rows are (token, base expert), sorted by base expert, in the order of transformers' own
        # grouped_mm experts and with their sums.
        order, rows = torch.sort(chosen.reshape(-1))
        token = rows // chosen.shape[-1]
        linear = _Rows(order, experts.num_experts, experts.config._experts_implementation)

        gate_up = linear(flat[token], experts.gate_up_proj, experts.gate_up_proj_bias)
        hidden = experts._apply_gate(gate_up)  # [_R, _I]
        delta = self._gate_up(flat, routing.picks(flat.dtype))
        each = hidden.unsqueeze(1)  # [_R, k or 1, _I]
        if delta is not None:
            each = experts._apply_gate(gate_up.unsqueeze(1) + delta[token])
        weights = routing.weights.to(hidden.dtype)[token].unsqueeze(-1)
        mix = hidden + ((each - hidden.unsqueeze(1)) * weights).sum(1)
        output = _gather(linear(mix, experts.down_proj, experts.down_proj_bias), rows, scores)

        if self.down_proj is not None:
            shares = routing.shares(each.dtype)[token]
            low = self.down_proj.mixed(each.expand(-1, shares.shape[1], -1), shares)
            output = output + self.down_proj.expand(_gather(low, rows, scores))
        return output.to(x.dtype).reshape(x.shape), (scores,), routing

    def _gate_up(self, flat: Tensor, picks: Tensor) -> Tensor | None:
        """Each picked expert's deltas in gpt-oss's interleaved layout, [_T, k, 2 _I]."""
        pair = [lora and lora.each(flat, picks) for lora in (self.gate_proj, self.up_proj)]
        given = [delta for delta in pair if delta is not None]
        if not given:
            return None
        zero = torch.zeros_like(given[0])
        return torch.stack([zero if d is None else d for d in pair], dim=-1).flatten(-2)


class _Rows:
    """Multiplies rows that are sorted by base expert with their expert's matrix."""

    def __init__(self, order: Tensor, experts: int, implementation: str):
        self.order = order
        ends = torch.arange(experts, device=order.device)
        self.offsets = torch.searchsorted(order, ends, right=True).to(torch.int32)
        self.grouped = implementation == "grouped_mm"

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[_R, in] with [_E, in, out] and [_E, out] to [_R, out]."""
        if self.grouped:
            return _grouped_linear(
                rows, weight, self.offsets, bias=bias[self.order], is_transposed=True
            )
        counts = self.offsets.diff(prepend=self.offsets.new_zeros(1)).tolist()
        parts = [part @ own for part, own in zip(rows.split(counts), weight, strict=True)]
        return torch.cat(parts) + bias[self.order]


def _gather(values: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
    """Weigh rows by their base expert's score and add up each token's: [_R, ...] to [_T, ...]."""
    back = torch.empty_like(rows)
    back[rows] = torch.arange(len(rows), device=rows.device)
    weights = scores.reshape(-1)[rows]
    weighted = values * weights.reshape(-1, *[1] * (values.dim() - 1))
    return weighted[back].unflatten(0, scores.shape).sum(1)
