"""What a finished run hands over: its adapter folder and its figures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_tools.core.history import invalid_share, read_metrics
from gptoss_tools.core.publish import publish, read_manifest, temporary_name
from gptoss_tools.core.runs import Run
from gptoss_tools.models.loading import quiet

if TYPE_CHECKING:
    from gptoss_tools.training.grpo import DecisionTrainer


@dataclass(frozen=True)
class Outcome:
    """A finished run. Rewards and shares are means over the first or last tenth of the steps.

    `regret` is the last one on held-out rows and `regret_best` the least, that of the adapter in
    `best`; None without eval_steps.
    """

    run: Path
    adapter: Path
    steps: int
    reward_first: float | None
    reward_last: float | None
    invalid_last: float | None
    seconds: float
    resumed_from: int = 0
    best: Path | None = None
    regret: float | None = None
    regret_best: float | None = None


def write_adapter(folder: Path, trainer: DecisionTrainer, **facts: Any) -> None:
    """Write an adapter folder, whole or not at all: PEFT's files, the tokenizer's, and `facts`."""
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet():
        model = trainer.accelerator.unwrap_model(trainer.model)
        # False: PEFT would otherwise ask the Hub whether the vocabulary changed.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        trainer.processing_class.save_pretrained(str(temporary))
    publish(temporary, folder, **facts)


def summarize(run: Run, steps: int, seconds: float, resumed_from: int) -> Outcome:
    """Read the figures of a finished run from its metrics; `seconds` are this sitting's."""
    records = read_metrics(run.metrics_path)
    tenth = max(1, len(records) // 10)
    rewards = [r.get("reward") for r in records]
    regrets = [r["eval_regret"] for r in records if r.get("eval_regret") is not None]
    best = read_manifest(run.best_path)
    return Outcome(
        run=run.path,
        adapter=run.adapter_path,
        steps=steps,
        reward_first=_mean(rewards[:tenth]),
        reward_last=_mean(rewards[-tenth:]),
        invalid_last=_mean([invalid_share(r) for r in records[-tenth:]]),
        seconds=seconds,
        resumed_from=resumed_from,
        best=run.best_path if best else None,
        regret=regrets[-1] if regrets else None,
        regret_best=best.get("regret") if best else None,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
