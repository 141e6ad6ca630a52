"""The expected reward over actions in place of the one drawn: `action_gradient = exact`.

After the drawn reasoning every written answer's probability is known, and the table holds its
reward, so the value of the reasoning and the gradient of the answer need no drawing:

    value     V = worst + sum_a p_a (r_a - worst) + rest
    gradient  (V - mean of the others' V) grad log p(reasoning) + sum_a (r_a - worst) grad p_a
              + rest grad log p(drawn answer)

`worst` is what an invalid answer earns. `rest` is what the completion earned above what the sum
counts for it: nothing where a written answer or an invalid one was drawn, so that only an unusual
spelling and second thoughts are left to chance. Where these turn up, `worst` is raised in all three
places towards the written answers' mean, by what they earned in earlier steps. A completion that
never comes to its answer is reasoning as a whole, with its own reward. The derivation is in
docs/math.md. Leaves out which answers are written down (`written_answers`) and the forward pass
(`answer_tree`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from gptoss_tools.errors import ConfigError
from gptoss_tools.training import answer_tree
from gptoss_tools.training.answer_tree import ABSENT
from gptoss_tools.training.written_answers import (
    Answer,
    Appraisal,
    answer_begins,
    appraise,
    first_unknown,
    rewards_of,
    tensors,
    worst_of,
    written_answers,
)

UNSUITED = {
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "router_aux_loss_coef": 0.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "use_vllm": False,
}
"""Arguments of GRPOConfig that spread one advantage over a completion, or need its plain forward,
and the only value each may have."""


MEMORY = 0.9  # of `odd_answers`, per generation batch
TINY = 1e-30


def against_the_others(values: torch.Tensor, group: int) -> torch.Tensor:
    """Return each value less the mean of the others of its group of `group` in a row; 0 if alone.

    The group's whole mean would shrink this by (group - 1) / group, and the reasoning's gradient
    with it, beside the answer's, which has no baseline.
    """
    if group < 2:
        return torch.zeros_like(values)
    grouped = values.view(-1, group)
    return ((grouped - grouped.mean(1, keepdim=True)) * group / (group - 1)).flatten()


class ExactActions:
    """A mixin before GRPOTrainer; with `action_gradient` "sampled" it changes nothing."""

    # What is used of the trainer it is mixed into.
    args: Any
    model: Any
    train_dataset: Any
    accelerator: Any
    processing_class: Any
    reward: Any
    share_prompts: bool
    loss_type: str
    epsilon_high: float
    max_completion_length: int
    num_generations: int
    current_gradient_accumulation_steps: int
    _metrics: Any
    _publish_records: Any
    action_gradient: str = "sampled"
    odd_answers: Sequence[float] = (0.0, 0.0)
    """Of earlier answers that were not written down: what they earned above `worst`, and what the
    written ones would have on average; checkpoints keep it."""
    _scored: Mapping[str, Any] | None = None
    _chances: torch.Tensor | None = None

    def check_exact(self) -> None:
        """Raise ConfigError or DataError for what the exact gradient cannot serve."""
        if self.action_gradient != "exact":
            return
        for name, needed in UNSUITED.items():
            if getattr(self.args, name, needed) != needed:
                raise ConfigError(
                    f"[trainer] {name} cannot be combined with action_gradient exact",
                    hint="use action_gradient sampled",
                )
        worst_of(self.reward.invalid_reward, rewards_of(first_unknown(self.train_dataset)))
        self._written(self.train_dataset[0])

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Extends TRL's: advantages by token, from expected rewards instead of drawn ones."""
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.action_gradient == "exact" and self.model.training:
            batch |= self.credit(self.model, batch, inputs)
            self._publish_records(gather_object(self.reward.records))
        return batch

    @torch.no_grad()
    def credit(
        self, model: Any, batch: dict[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return advantages [B, C], and decided, answers and gains for the loss.

        `rows` are the table's, one for each completion; the reward's records belong to the same
        completions and get `expected_reward`.
        """
        records = self.reward.records
        found = [
            self._appraise(*pair)
            for pair in zip(
                batch["completion_ids"], batch["completion_mask"], rows, records, strict=True
            )
        ]
        device = batch["completion_ids"].device
        added = tensors(found, device)
        training = model.training
        model.eval()  # as it drew them
        try:
            size = self.args.per_device_train_batch_size
            chances = self._score(model, batch | added, size).answers
        finally:
            model.train(training)
        worst, rest, odd = (
            torch.tensor([float(getattr(a, n)) for a in found], device=device)
            for n in ("worst", "rest", "odd")
        )
        mass = chances.sum(1)
        mean = (chances * added["gains"]).sum(1) / mass.clamp(min=TINY)
        level = mean * (mass > 0) * self._level()
        added["gains"] -= level.unsqueeze(1) * (added["answers"][..., 0] != ABSENT)
        odd = odd * (mass > 0)
        values = worst + level + (chances * added["gains"]).sum(1) + rest - level * odd
        self._remember((rest * odd).sum(), (mean * odd).sum())
        rest = rest - level * odd
        for record, value in zip(records, values.tolist(), strict=True):
            record["expected_reward"] = value
        everyone = against_the_others(self.accelerator.gather(values), self.num_generations)
        begin = self.accelerator.process_index * len(values)
        own = everyone[begin : begin + len(values)].unsqueeze(1)
        columns = torch.arange(batch["completion_ids"].size(1), device=device)
        before = columns < added["decided"].unsqueeze(1)
        added["advantages"] = torch.where(before, own, rest.unsqueeze(1))
        valid = torch.tensor([float(r["action"] is not None) for r in records], device=device)
        self._log_exact(values, mass, (mass > 0).float(), odd * valid)
        return added

    def _level(self) -> float:
        """How far from `worst` to the written answers' mean others came so far, 0 to 1."""
        earned, mean = self.odd_answers
        return min(max(earned / mean, 0.0), 1.0) if mean > 0 else 0.0

    def _remember(self, earned: torch.Tensor, mean: torch.Tensor) -> None:
        """Note what answers that were not written down earned, and what the others would have."""
        sums = self.accelerator.gather(torch.stack([earned, mean])).view(-1, 2).sum(0).tolist()
        pairs = zip(self.odd_answers, sums, strict=True)
        self.odd_answers = [MEMORY * old + new for old, new in pairs]

    def _appraise(self, ids: Any, mask: Any, row: Mapping[str, Any], record: Any) -> Appraisal:
        kept, rewards_K = ids[mask.bool()].tolist(), rewards_of(row)
        return appraise(
            kept,
            record["reward"],
            answer_begins(kept, self.processing_class),
            self._written(row),
            rewards_K,
            worst_of(self.reward.invalid_reward, rewards_K),
            self.max_completion_length,
        )

    def _written(self, row: Mapping[str, Any]) -> list[Answer]:
        key = (row["n_actions"], tuple(row.get("actions") or ()))
        cache = self.__dict__.setdefault("_answers_of", {})
        if key not in cache:
            cache[key] = written_answers(self.processing_class, self.reward.pattern, *key)
        return cache[key]

    def _log_exact(self, *by_row: torch.Tensor) -> None:
        """Log of these [B] each: value, mass of written answers, whether it came there, odd."""
        sums = torch.stack([row.sum() for row in by_row])
        value, mass, reached, odd = self.accelerator.gather(sums).view(-1, 4).sum(0).tolist()
        rows = len(by_row[0]) * self.accelerator.num_processes
        metrics = self._metrics["train"]
        metrics["exact/value"].append(value / rows)
        metrics["exact/valid_mass"].append(mass / reached if reached else float("nan"))
        metrics["exact/reached"].append(reached / rows)
        metrics["exact/unlisted"].append(odd / rows)

    def _score(self, model: Any, batch: Any, size: int | None = None) -> answer_tree.Scores:
        with self.accelerator.autocast():
            scores = answer_tree.score(
                model,
                batch,
                sliding_window=getattr(self.model.config, "sliding_window", None),
                dtype=self.model.dtype,
                share=self.share_prompts,
                batch_size=size,
            )
        mixture = getattr(self.accelerator.unwrap_model(model), "mixlora", None)
        if mixture is not None and mixture.recorder.last is not None:
            mixture.recorder.last.counted = scores.drawn  # padding and written answers do not count
        return scores

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Replaces TRL's inside the loss: drawn tokens and written answers in one forward."""
        if self._scored is None:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)  # type: ignore[misc]
        scores = self._score(model, self._scored)
        self._chances = scores.answers
        return scores.logps, scores.entropies, None

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Extends TRL's: the answers' expected reward, with the weight of a token of its row."""
        if "gains" not in inputs:
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        self._scored = inputs
        try:
            loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        finally:
            self._scored = None
        assert self._chances is not None
        earned = (self._chances * inputs["gains"]).sum(1)
        self._chances = None
        return loss - (earned * self.row_weights(inputs)).sum()

    def row_weights(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return [B]: what TRL's loss multiplies a token of each row by, accumulation included."""
        lengths = inputs["completion_mask"].sum(dim=1).clamp(min=1)
        micro_steps = self.current_gradient_accumulation_steps
        if self.loss_type == "grpo":
            share = 1 / (len(lengths) * lengths)
        elif self.loss_type == "bnpo":
            share = 1 / lengths.sum().expand_as(lengths)
        elif self.loss_type == "dr_grpo":
            share = torch.full_like(lengths, len(lengths) * self.max_completion_length).reciprocal()
        else:  # dapo, cispo: the tokens of the generation batch, over all processes
            whole = inputs["num_items_in_batch"].clamp(min=1).expand_as(lengths)
            share = self.accelerator.num_processes * self.args.steps_per_generation / whole
        if self.loss_type == "cispo":  # whose cap on ratios is absolute, and may be below 1
            share = share * min(1.0, self.epsilon_high)
        return share / micro_steps
