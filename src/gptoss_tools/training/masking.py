"""Completions without a reward leave no trace in the gradient.

TRL leaves such rows out of the group statistics, but keeps their tokens in the loss's denominators,
the KL term and the entropy. Zeroing their completion mask removes the tokens; what is left is the
row (or micro-batch) count some losses divide by, which `loss_scale` makes good:

    dapo, cispo      divide by the tokens of the generation batch     recounted here, exact
    grpo, dr_grpo    divide by rows (times a constant)                times rows / valid rows
    bnpo             divides by a micro-batch's tokens, then by the    times micro-batches /
                     number of micro-batches                          micro-batches with tokens

Counts run over the generation batch and all processes. With steps_per_generation a multiple of
gradient_accumulation_steps that is one optimizer step or more; with less, each generation batch is
normalised on its own and an empty one counts as a micro-step, just as TRL does for dapo.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

ROW_NORMALISED = ("grpo", "dr_grpo")
MICRO_BATCH_NORMALISED = ("bnpo",)
Gather = Callable[[torch.Tensor], torch.Tensor]


def mask_rows(batch: dict[str, Any], keep: torch.Tensor, gather: Gather) -> None:
    """Zero the completion mask of rows where `keep` (bool[B]) is False, and recount the tokens.

    `batch` is what TRL's `_generate_and_score_completions` returns; `gather` concatenates a tensor
    over all processes.
    """
    mask = batch["completion_mask"]
    batch["completion_mask"] = mask * keep.to(mask).unsqueeze(1)
    recount(batch, gather)


def recount(batch: dict[str, Any], gather: Gather) -> None:
    """Count the tokens that token-normalised losses divide by, over all processes."""
    loss_mask = batch["completion_mask"]
    if "tool_mask" in batch:
        loss_mask = loss_mask * batch["tool_mask"]
    batch["num_items_in_batch"] = gather(loss_mask.sum()).sum()


def loss_scale(loss_type: str, slices: list[dict[str, Any]], gather: Gather) -> torch.Tensor:
    """Factor (a float64 scalar) that takes masked rows out of the loss's denominator.

    `slices` are this process's micro-batches of one generation batch. 1 where nothing is masked,
    where everything is, and for losses that count tokens.
    """
    device = slices[0]["completion_mask"].device
    valid_rows = [s["completion_mask"].bool().any(dim=1) for s in slices]
    if loss_type in ROW_NORMALISED:
        counts = [sum(len(v) for v in valid_rows), sum(int(v.sum()) for v in valid_rows)]
    elif loss_type in MICRO_BATCH_NORMALISED:
        counts = [len(slices), sum(bool(v.any()) for v in valid_rows)]
    else:
        counts = [1, 1]
    total, valid = gather(torch.tensor([counts], device=device)).sum(dim=0).double()
    return torch.where(valid > 0, total / valid.clamp(min=1), torch.ones_like(total))


@contextlib.contextmanager
def without_unscorable_warning() -> Iterator[None]:
    """Drop TRL's warning about rewards of None, which prints a whole prompt on every batch."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    logger.addFilter(_is_other)
    try:
        yield
    finally:
        logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return "All reward functions returned None" not in record.getMessage()
