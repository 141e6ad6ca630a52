"""MixLoRA's auxiliary losses, from what a training forward noted. Padding never counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_tools.models.mixlora_config import MixLoraConfig
from gptoss_tools.models.mixlora_layers import Record, Routing, Seen

CONTRASTED = 512  # tokens InfoNCE looks at: its cost grows with their square


def weighted_losses(record: Record, config: MixLoraConfig) -> dict[str, Tensor]:
    """Every loss times its weight, averaged over layers (Mixtral's code pools all layers' tokens,
    where one layer's imbalance can hide another's).
    """
    layers = list(record.layers.values())
    if not layers:
        return {}

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean()

    counted = record.counted
    losses = {
        "balance": config.router_aux_loss_coef
        * mean([balance(seen.routing, counted) for seen in layers])
    }
    if config.dual_path:
        losses["gate_balance"] = config.alpha_bal * mean(
            [gate_balance(seen, counted) for seen in layers]
        )
        losses["uncertainty"] = config.beta_unc * mean(
            [uncertainty(seen, counted) for seen in layers]
        )
    return losses


def shares_of(routing: Routing, counted: Tensor | None) -> Tensor:
    """Picks of each expert per counted token, [_N]; they sum to top_k."""
    return _mean(routing.picks(routing.probs.dtype).sum(-2), counted)


def balance(routing: Routing, counted: Tensor | None) -> Tensor:
    """_N * sum_i F_i P_i over all picks, Mixtral's form; perfect balance gives top_k.

    F is the picks per token, P the mean probability; only P carries a gradient.
    """
    picked = shares_of(routing, counted)
    return len(picked) * (picked * _mean(routing.probs, counted)).sum()


def gate_balance(seen: Seen, counted: Tensor | None) -> Tensor:
    """KL of the router's mean probabilities over both paths from uniform; 0 is perfect."""
    assert seen.noised is not None
    mean = (_mean(seen.routing.probs, counted) + _mean(seen.noised.probs, counted)) / 2
    return torch.special.xlogy(mean, mean * len(mean)).sum()


def uncertainty(seen: Seen, counted: Tensor | None) -> Tensor:
    """InfoNCE by cosine, temperature 1: a token's clean output should find its own noised one.

    Of more than `CONTRASTED` counted tokens it looks at that many, evenly spaced.
    """
    assert seen.clean_output is not None and seen.noised_output is not None
    clean = seen.clean_output.flatten(0, -2)
    rows = torch.arange(len(clean), device=clean.device)
    if counted is not None:
        rows = rows[counted.to(rows.device)]
    if len(rows) > CONTRASTED:
        rows = rows[torch.linspace(0, len(rows) - 1, CONTRASTED, device=rows.device).long()]
    noised = seen.noised_output.flatten(0, -2)[rows]
    wide = torch.promote_types(clean.dtype, torch.float32)
    logits = F.normalize(clean[rows].to(wide), dim=-1) @ F.normalize(noised.to(wide), dim=-1).T
    own = torch.arange(len(rows), device=rows.device)
    return F.cross_entropy(logits, own, reduction="sum") / max(len(rows), 1)


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Mean of [..., _N] over the counted tokens, 0 if there are none."""
    values = values.flatten(0, -2)
    if counted is None:
        return values.mean(0)
    weights = counted.to(values)
    return (values * weights.unsqueeze(-1)).sum(0) / weights.sum().clamp(min=1)
