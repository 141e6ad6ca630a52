"""One layer's routed FFN: what every family shares, and the form beside the FFN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.mixlora_config import MixLoraConfig
from gptoss_tools.models.mixlora_dual import NormalAugmenter, PathGate
from gptoss_tools.models.mixlora_layers import ExpertLora, Recorder, Routing, Seen, route


class RoutedBlock(nn.Module):
    """Stands in for an FFN's forward; subclasses say how one path through it is computed.

    The frozen FFN is an argument, not a child, so that this module holds new parameters only and
    its keys are the published ones.
    """

    def __init__(self, config: MixLoraConfig, hidden: int, layer: int, recorder: Recorder):
        super().__init__()
        self.config = config
        self.layer = layer
        self.recorder = recorder
        self.moe_gate = nn.Linear(
            hidden, config.num_experts, bias=False, device="cpu", dtype=torch.float32
        )
        nn.init.normal_(self.moe_gate.weight, 0.0, config.router_init_range)
        if config.dual_path:
            self.augment_gating = PathGate(hidden)
            self.augmentator = NormalAugmenter(config.alpha_scale, config.beta_scale)

    def path(
        self, mlp: Any, original: Callable[[Tensor], Any], x: Tensor
    ) -> tuple[Tensor, tuple[Any, ...], Routing]:
        """Output [..., _H] for x [..., _H], what else the FFN returns, and the routing."""
        raise NotImplementedError

    def route(self, x: Tensor) -> Routing:
        """Send each token to its LoRA experts; jitter in training only."""
        jitter = self.config.jitter_noise if self.training else 0.0
        return route(self.moe_gate, x, self.config.top_k, jitter)

    def forward(self, mlp: nn.Module, original: Callable[[Tensor], Any], x: Tensor) -> Any:
        """What the FFN returns, with the mixture in it; `original` is the FFN's own forward."""
        if not self.recorder.enabled:
            return original(x)
        output, rest, routing = self.path(mlp, original, x)
        seen = Seen(routing)
        if self.training and self.config.dual_path:
            noised, _, other = self.path(mlp, original, self.augmentator(x))
            seen = Seen(routing, other, output, noised)
            gate = self.augment_gating(x).to(output.dtype)
            output = gate * output + (1 - gate) * noised
        self.recorder.note(self.layer, seen)
        return (output, *rest) if rest else output


class ProjectionsBlock(RoutedBlock):
    """LoRA experts on the FFN's own projections, as far as the config names them."""

    def __init__(
        self, config: MixLoraConfig, hidden: int, inner: int, layer: int, recorder: Recorder
    ):
        super().__init__(config, hidden, layer, recorder)

        def experts(name: str, inputs: int, outputs: int) -> ExpertLora | None:
            return ExpertLora(inputs, outputs, config) if name in config.ffn_targets else None

        self.gate_proj = experts("gate_proj", hidden, inner)
        self.up_proj = experts("up_proj", hidden, inner)
        self.down_proj = experts("down_proj", inner, hidden)


class ParallelBlock(RoutedBlock):
    """Routed LoRA beside the whole FFN: f(x) + sum_k R_k(x) B_k A_k x, as in PERFT-R.

    It needs nothing of the FFN but its output, so any FFN will do, packed experts too. Kernels
    without a backward pass, as transformers has for those, are refused in training: the gradient
    around the FFN alone would be wrong, not merely incomplete (arXiv 2411.08212).
    """

    def __init__(self, config: MixLoraConfig, hidden: int, layer: int, recorder: Recorder):
        super().__init__(config, hidden, layer, recorder)
        self.block = ExpertLora(hidden, hidden, config)

    def path(
        self, mlp: Any, original: Callable[[Tensor], Any], x: Tensor
    ) -> tuple[Tensor, tuple[Any, ...], Routing]:
        returned = original(x)
        output, *rest = returned if isinstance(returned, tuple) else (returned,)
        if x.requires_grad and torch.is_grad_enabled() and not output.requires_grad:
            raise ConfigError(
                "the base's experts pass no gradient on, so nothing below them could be trained",
                hint="load the base with load_model(..., for_training=True)",
            )
        routing = self.route(x)
        shares = routing.shares(x.dtype).sum(-2).unsqueeze(-1)  # [..., _N, 1]
        delta = self.block.expand(self.block.shrink(x) * shares)
        return output + delta.to(output.dtype), tuple(rest), routing
