"""MixLoRA on a dense FFN (llama, mistral, qwen, gemma): the paper's form.

Expert k is the frozen FFN with its own LoRA on gate, up and down. Gate and up of the base are
computed once for all experts, and so is down, since
sum_k R_k (W h_k + B_k A_k h_k) = W sum_k R_k h_k + sum_k R_k B_k A_k h_k.
The weighted sum is written as h + sum_k R_k (h_k - h), the same because the weights sum to 1: with
B = 0 the weights' own rounding, coarse in bfloat16, never enters. What may differ from the base is
the last bit of the activation function, which a CPU computes otherwise at the end of a buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.mixlora_block import ProjectionsBlock
from gptoss_tools.models.mixlora_config import FFN, MixLoraConfig
from gptoss_tools.models.mixlora_layers import ExpertLora, Recorder, Routing


class DenseBlock(ProjectionsBlock):
    """Routed LoRA experts on the three projections of one gated FFN."""

    def __init__(self, config: MixLoraConfig, mlp: Any, layer: int, recorder: Recorder):
        check_dense(mlp, layer)
        sizes = mlp.gate_proj.in_features, mlp.gate_proj.out_features
        super().__init__(config, *sizes, layer, recorder)

    def path(
        self, mlp: Any, original: Callable[[Tensor], Any], x: Tensor
    ) -> tuple[Tensor, tuple[Any, ...], Routing]:
        routing = self.route(x)
        picks = routing.picks(x.dtype)
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
        hidden = mlp.act_fn(gate) * up
        gates = _plus(self.gate_proj, gate, x, picks)  # [..., k, _I]
        ups = _plus(self.up_proj, up, x, picks)
        each = mlp.act_fn(gates) * ups
        weights = routing.weights.to(hidden.dtype).unsqueeze(-1)
        output = mlp.down_proj(hidden + ((each - hidden.unsqueeze(-2)) * weights).sum(-2))
        if self.down_proj is not None:
            each = each.expand(*routing.experts.shape, -1)
            low = self.down_proj.mixed(each, routing.shares(each.dtype))
            output = output + self.down_proj.expand(low)
        return output, (), routing


def _plus(lora: ExpertLora | None, base: Tensor, x: Tensor, picks: Tensor) -> Tensor:
    """The base's product with each picked expert's delta: [..., k, out], or [..., 1, out]."""
    base = base.unsqueeze(-2)
    return base if lora is None else base + lora.each(x, picks)


@torch.no_grad()
def check_dense(mlp: Any, layer: int) -> None:
    """Raise ConfigError unless this FFN is down(act(gate(x)) * up(x)); one token is computed."""
    if not all(isinstance(getattr(mlp, name, None), nn.Linear) for name in FFN) or not hasattr(
        mlp, "act_fn"
    ):
        raise ConfigError(
            f"the FFN of layer {layer} ({type(mlp).__name__}) has no {', '.join(FFN)}",
            hint="MixLoRA serves gpt-oss and gated dense FFNs; form `parallel` serves any FFN",
        )
    weight = mlp.gate_proj.weight
    size = mlp.gate_proj.in_features
    probe = torch.linspace(-2, 2, size, device=weight.device).cos()[None, None]
    probe = probe.to(weight.dtype if weight.is_floating_point() else torch.float32)
    expected = mlp.down_proj(mlp.act_fn(mlp.gate_proj(probe)) * mlp.up_proj(probe))
    if not torch.allclose(mlp(probe), expected, rtol=1e-2, atol=1e-4, equal_nan=True):
        raise ConfigError(
            f"the FFN of layer {layer} ({type(mlp).__name__}) is not down(act(gate) * up)",
            hint="form `parallel` serves any FFN",
        )
