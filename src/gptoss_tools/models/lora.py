"""LoRA on gpt-oss: which parts can carry an adapter, and what that costs.

PEFT's `all-linear` reaches q, k, v and o of every layer and nothing else: the router is a class of
its own, the experts are bare parameters, lm_head is left out on purpose. `experts` adds the expert
parameters through `target_parameters`: rank r for each expert, so r * E rows in all, the full W +
sBA is rebuilt in every forward, and the result cannot be merged into MXFP4 without losing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig

from gptoss_tools.core.mxfp4 import PACKED
from gptoss_tools.errors import ConfigError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERT_PARAMETERS = tuple(f"mlp.experts.{name}" for name in PACKED)
_REFUSED = {
    "router": "the router is no linear layer",
    "lm_head": "GRPO cannot train an adapter on lm_head",
}


def lora_config(
    *,
    r: int = 4,
    alpha: int = 8,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "all-linear",
) -> LoraConfig:
    """The PEFT config for these settings; the update is scaled by alpha / r.

    `target_modules`: `all-linear` or `attention` (the same four projections), `experts`, single
    module names, or a list of these. Raises ConfigError for experts with dropout, which PEFT cannot
    do, and for parts of gpt-oss that cannot carry an adapter.
    """
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not wanted:
        raise ConfigError("lora_target_modules is empty", hint="use all-linear")
    modules: list[str] = []
    parameters: list[str] = []
    for name in wanted:
        if reason := _REFUSED.get(name):
            raise ConfigError(f"lora_target_modules holds {name}: {reason}", hint="all-linear")
        if name not in ("all-linear", "attention", "experts") and (
            name.rsplit(".", 1)[-1] not in ATTENTION
        ):
            raise ConfigError(
                f"lora_target_modules holds {name!r}, which gpt-oss does not have",
                hint=f"all-linear, experts, or some of {', '.join(ATTENTION)}",
            )
        if name == "experts":
            parameters = list(EXPERT_PARAMETERS)
        else:
            modules += ATTENTION if name in ("all-linear", "attention") else [name]
    if parameters and dropout:
        raise ConfigError("lora_dropout must be 0 when lora_target_modules holds `experts`")
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        # An empty list means "none"; None would let PEFT guess and fail for gpt-oss.
        target_modules=list(dict.fromkeys(modules)),
        target_parameters=parameters or None,
        bias="none",
        task_type="CAUSAL_LM",
    )


@dataclass(frozen=True)
class Trainable:
    """How many parameters of a model learn."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable over total."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters learn ({self.share:.2%})"


def describe(model: torch.nn.Module) -> Trainable:
    """Count the parameters that learn and all of them; packed experts count their bytes twice."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return Trainable(trainable, total)
