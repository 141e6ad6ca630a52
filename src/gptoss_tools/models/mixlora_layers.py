"""The parts of a MixLoRA: low-rank pairs, one projection's experts, the router, the record.

Parameters are float32 and drawn on the CPU under torch's global generator, so that a seed gives the
same numbers wherever the model lies; products run in the type of the base's activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.mixlora_config import MixLoraConfig


class LowRank(nn.Module):
    """One LoRA pair: A [r, in] drawn as PEFT draws it (kaiming uniform), B [out, r] zero."""

    def __init__(self, inputs: int, outputs: int, r: int):
        super().__init__()
        self.lora_A = nn.Linear(inputs, r, bias=False, device="cpu", dtype=torch.float32)
        self.lora_B = nn.Linear(r, outputs, bias=False, device="cpu", dtype=torch.float32)
        nn.init.zeros_(self.lora_B.weight)


class AttentionLora(LowRank):
    """Plain LoRA on one frozen projection, added to what the projection returns."""

    def __init__(self, base: nn.Linear, config: MixLoraConfig, recorder: Recorder):
        super().__init__(base.in_features, base.out_features, config.r)
        self.dropout = nn.Dropout(config.lora_dropout)
        self.scale = config.lora_alpha / config.r
        self.recorder = recorder

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The projection's forward hook."""
        if not self.recorder.enabled:
            return output
        low = F.linear(self.dropout(args[0]), self.lora_A.weight.to(args[0].dtype))
        return output + F.linear(low, self.lora_B.weight.to(low.dtype)) * self.scale


class ExpertLora(nn.Module):
    """The LoRA pairs of all experts for one projection, computed together.

    `shrink` costs num_experts * r columns instead of top_k * r, little beside the base's product,
    and spares all sorting of tokens. One dropout mask serves every expert.
    """

    def __init__(self, inputs: int, outputs: int, config: MixLoraConfig):
        super().__init__()
        pairs = [LowRank(inputs, outputs, config.r) for _ in range(config.num_experts)]
        self.experts = nn.ModuleList(pairs)
        self.dropout = nn.Dropout(config.lora_dropout)
        self.scale = config.lora_alpha / config.r

    def _pairs(self) -> list[LowRank]:
        return cast(list[LowRank], list(self.experts))

    def shrink(self, x: Tensor) -> Tensor:
        """A x of every expert: [..., in] to [..., _N, r]."""
        weight = torch.cat([pair.lora_A.weight for pair in self._pairs()]).to(x.dtype)
        return F.linear(self.dropout(x), weight).unflatten(-1, (len(self.experts), -1))

    def expand(self, low: Tensor) -> Tensor:
        """The scaled sum over experts of B low: [..., _N, r] to [..., out]."""
        weight = torch.cat([pair.lora_B.weight for pair in self._pairs()], dim=1).to(low.dtype)
        return F.linear(low.flatten(-2), weight) * self.scale

    def each(self, x: Tensor, picks: Tensor) -> Tensor:
        """B A x of each picked expert: [..., in] and one-hot [..., k, _N] to [..., k, out]."""
        return self.expand(self.shrink(x).unsqueeze(-3) * picks.unsqueeze(-1))

    def mixed(self, h: Tensor, shares: Tensor) -> Tensor:
        """sum_k R_k A_k h_k, [..., _N, r]: h [..., k, in], `shares` [..., k, _N] of R and zeros."""
        return (self.shrink(h) * shares.unsqueeze(-1)).sum(-3)


class Routing(NamedTuple):
    """Where tokens go: probabilities over all experts, and the picked ones with their weights."""

    probs: Tensor  # [..., _N], float32 or wider
    experts: Tensor  # [..., k]
    weights: Tensor  # [..., k], sums to 1

    def picks(self, dtype: torch.dtype) -> Tensor:
        """The picked experts as one-hot rows [..., k, _N]."""
        return F.one_hot(self.experts, self.probs.shape[-1]).to(dtype)

    def shares(self, dtype: torch.dtype) -> Tensor:
        """The same with the expert's weight in place of 1."""
        return self.picks(dtype) * self.weights.to(dtype).unsqueeze(-1)


def route(gate: nn.Linear, x: Tensor, top_k: int, jitter: float = 0.0) -> Routing:
    """Softmax over all experts, the largest `top_k`, renormalised; in float32 whatever x is.

    `jitter` multiplies every input by a number drawn uniformly from 1 - jitter to 1 + jitter.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    inputs = x.to(wide)
    if jitter:
        inputs = inputs * torch.empty_like(inputs).uniform_(1 - jitter, 1 + jitter)
    with torch.autocast(x.device.type, enabled=False):
        probs = F.linear(inputs, gate.weight.to(wide)).softmax(-1)
    weights, experts = probs.topk(top_k, dim=-1)
    return Routing(probs, experts, weights / weights.sum(-1, keepdim=True))


@dataclass
class Seen:
    """What one layer did in a training forward; the last three only with the dual path."""

    routing: Routing
    noised: Routing | None = None
    clean_output: Tensor | None = None
    noised_output: Tensor | None = None


@dataclass
class Record:
    """One training forward: which tokens count ([_T] bool; None: all), what each layer did."""

    counted: Tensor | None
    layers: dict[int, Seen] = field(default_factory=dict)


class Recorder:
    """Whether the MixLoRA is switched on, and what its last training forward did.

    `begin` and `end` are hooks around the decoder. Layers note what they did only between them, so
    the recomputation of gradient checkpointing, which runs in the backward pass, counts nothing
    twice. What they note keeps its graph: non-reentrant checkpointing supports that.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.last: Record | None = None
        self._running = False

    def __reduce__(self):
        return Recorder, ()  # a copied model must not drag along the graph of a past forward

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder (with_kwargs)."""
        if not self.enabled:
            return
        self._running = module.training and torch.is_grad_enabled()
        self.last = Record(_counted(args, kwargs)) if self._running else None

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of the decoder (always_call)."""
        self._running = False

    def note(self, layer: int, seen: Seen) -> None:
        """Keep what `layer` did, if this is a training forward and no recomputation."""
        if not self._running or self.last is None:
            return
        if not torch.is_grad_enabled():
            raise ConfigError(
                "MixLoRA's losses get no gradient through reentrant gradient checkpointing",
                hint='pass gradient_checkpointing_kwargs={"use_reentrant": False}',
            )
        self.last.layers[layer] = seen


def _counted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Which of the [B * S] tokens a 2-D attention mask admits; any other mask says nothing."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or tokens is None:
        return None
    batch, length = tokens.shape[:2]
    if mask.shape[0] != batch or mask.shape[1] < length:
        return None
    return mask[:, mask.shape[1] - length :].reshape(-1) != 0
