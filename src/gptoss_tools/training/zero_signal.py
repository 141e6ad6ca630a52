"""Groups whose completions all earned the same teach nothing, so they need not be computed.

GRPO's advantage is a completion's reward less its group's mean: in such a group it is 0 for every
row, and without a KL term or an entropy bonus these rows add nothing to the gradient; they only
count in the denominators. `without_silent` leaves them out of forward and backward and keeps the
denominators, `splice` puts other groups in their place (dynamic sampling: DAPO, arXiv 2503.14476),
and `telling_rows` leaves out table rows that say so before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import torch
import torch.nn.functional as F

from gptoss_tools.core.stream import StepStream
from gptoss_tools.errors import ConfigError
from gptoss_tools.training.masking import recount

Batch = dict[str, Any]
Gather = Callable[[torch.Tensor], torch.Tensor]


def telling_rows(dataset: datasets.Dataset) -> list[int]:
    """Places of the rows whose known rewards are not all the same."""
    names = [name for name in dataset.column_names if name.startswith("reward_action_")]
    rewards = [dataset[name] for name in names]
    known = ({column[i] for column in rewards} - {None} for i in range(len(dataset)))
    return [place for place, values in enumerate(known) if len(values) > 1]


def silent_rows(rewards: torch.Tensor, generations: int) -> torch.Tensor:
    """bool[R]: rows of groups without two different rewards.

    `rewards`, [R], NaN where masked, holds groups of `generations` rows one after the other.
    """
    groups = rewards.view(-1, generations)
    low = groups.nan_to_num(nan=torch.inf).amin(dim=1)
    high = groups.nan_to_num(nan=-torch.inf).amax(dim=1)
    return (low >= high).repeat_interleave(generations)


def without_silent(batch: Batch, loss_type: str, gather: Gather) -> tuple[Batch, float]:
    """Leave the silent rows out of a micro-batch; return the rest and the factor for its loss.

    `silent` in the batch says which they are. Every process keeps as many rows as the one with the
    most, and at least one, so that all go through the same collective operations: silent ones where
    it has too few. Columns that only padding is left in go too. The factor restores what the loss
    divides by: rows (grpo, dr_grpo), this micro-batch's tokens (bnpo); dapo and cispo count the
    whole generation batch anyway.
    """
    silent, mask = batch["silent"], batch["completion_mask"]
    wanted = max(1, int(gather((~silent).sum().view(1)).max()))
    if wanted >= len(silent):
        return batch, 1.0
    # Stable: the rows that teach first, in their order, then as many others as are needed.
    rows = torch.argsort(silent.to(torch.uint8), stable=True)[:wanted].sort().values
    kept = mask[rows]
    first = int(batch["prompt_mask"][rows].any(dim=0).int().argmax())
    end = max(1, int(kept.any(dim=0).nonzero().max()) + 1) if kept.any() else 1
    part = {
        name: _columns(name, value[rows], first, end) if _by_row(value, len(silent)) else value
        for name, value in batch.items()
    }
    if loss_type == "bnpo":
        return part, float(kept.sum().clamp(min=1) / mask.sum().clamp(min=1))
    return part, wanted / len(silent) if loss_type in ("grpo", "dr_grpo") else 1.0


def splice(batch: Batch, fresh: Batch, generations: int) -> int:
    """Put the groups of `fresh` that teach in the places of silent ones; return how many.

    Both are what TRL's `_generate_and_score_completions` returns, with `silent`; prompts are padded
    left, all else right, to the longer of the two. `num_items_in_batch` has to be counted again.
    """
    rows = len(batch["silent"])
    holes = batch["silent"].view(-1, generations)[:, 0].nonzero().flatten()
    found = (~fresh["silent"]).view(-1, generations)[:, 0].nonzero().flatten()
    count = min(len(holes), len(found))
    if not count:
        return 0
    within = torch.arange(generations, device=holes.device)
    to = (holes[:count, None] * generations + within).flatten()
    taken = (found[:count, None] * generations + within).flatten()
    for name, value in list(batch.items()):
        if _by_row(value, rows):
            old, new = _same_width(name, value, fresh[name])
            batch[name] = old.index_copy(0, to, new[taken])
    return count


class SilentGroups:
    """A mixin before GRPOTrainer; without `skip_silent` it changes nothing."""

    # What is used of the trainer it is mixed into.
    accelerator: Any
    model: Any
    stream: StepStream
    train_dataset: Any
    loss_type: str
    num_iterations: int
    _step: int
    _metrics: Any
    skip_silent: bool = False
    resample_rounds: int = 0
    _silent: torch.Tensor

    def check_silent(self, rows: int) -> None:
        """Raise ConfigError if groups are spread over processes, each with `rows` at a time."""
        if self.resample_rounds and rows % self.stream.num_generations:
            raise ConfigError(
                f"zero_signal resample needs whole groups of {self.stream.num_generations} "
                f"completions in every process, and each has {rows} rows",
                hint="make prompts_per_step a multiple of the number of processes, or use skip",
            )

    def remember_silent(self, rewards: torch.Tensor, own: slice) -> None:
        """Note which of this process's rows are silent, from the rewards of all, [R]."""
        if self.skip_silent:
            self._silent = silent_rows(rewards, self.stream.num_generations)[own]

    def replace_silent(self, batch: Batch, score: Callable[[list[Any]], Batch]) -> None:
        """Mark silent rows, and draw other prompts for them, at most `resample_rounds` times.

        Which rows come is a function of (seed, micro-step, round) and of how many are needed, so a
        resumed run draws the same. Every process draws as many as the one that needs most. `score`
        generates and scores table rows as the batch was.
        """
        group, gather = self.stream.num_generations, self.accelerator.gather
        batch["silent"] = self._silent
        first = self._step // self.num_iterations
        for attempt in range(1, self.resample_rounds + 1):
            needed = int(gather(batch["silent"].sum().view(1)).max()) // group
            if not needed:
                break
            rows = self.stream.again(first, attempt, needed * self.accelerator.num_processes)
            place = self.accelerator.process_index * needed
            own = rows[place : place + needed].repeat(group).tolist()
            fresh = score([self.train_dataset[i] for i in own])
            splice(batch, fresh | {"silent": self._silent}, group)
            recount(batch, gather)
        share = gather(batch["silent"]).float().mean()
        self._metrics["train"]["silent_share"].append(float(share))

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Extends TRL's: silent rows are not computed."""
        rest, share = inputs, 1.0
        if "silent" in inputs:
            rest, share = without_silent(inputs, self.loss_type, self.accelerator.gather)
        return super()._compute_loss(model, rest) * share  # type: ignore[misc]


def _by_row(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows


def _columns(name: str, value: torch.Tensor, first: int, end: int) -> torch.Tensor:
    if value.dim() < 2:
        return value
    return value[:, first:] if name.startswith("prompt_") else value[:, :end]


def _same_width(
    name: str, old: torch.Tensor, new: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the narrower of two [B, T] tensors with zeros, which every mask leaves out."""
    if old.dim() < 2:
        return old, new
    width = max(old.size(1), new.size(1))
    left = name.startswith("prompt_")

    def padded(value: torch.Tensor) -> torch.Tensor:
        missing = width - value.size(1)
        return F.pad(value, (missing, 0) if left else (0, missing))

    return padded(old), padded(new)
