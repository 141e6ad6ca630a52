"""What a finished run hands over: its adapter folder and its figures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_tools.core.history import invalid_share, read_metrics
from gptoss_tools.core.publish import publish, read_manifest, temporary_name
from gptoss_tools.core.runs import Run
from gptoss_tools.models.adapters import is_adapter, save_trained
from gptoss_tools.models.loading import quiet

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True)
class Outcome:
    """A finished run; `adapter` or `model` is what it trained. None where nothing was measured.

    Rewards, losses and shares are means over the first or last tenth of the steps. `regret`,
    `eval_loss` and, where there is no regret, `eval_reward` are the last ones on held-out rows,
    `_best` and `_first` the best and the first; `best` holds the adapter of the best one.
    `resumed_from` is this sitting's first step.
    """

    run: Path
    steps: int
    seconds: float
    adapter: Path | None = None
    model: Path | None = None
    resumed_from: int = 0
    reward_first: float | None = None
    reward_last: float | None = None
    invalid_last: float | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    eval_loss_first: float | None = None
    eval_loss: float | None = None
    best: Path | None = None
    regret: float | None = None
    regret_best: float | None = None
    eval_reward: float | None = None
    eval_reward_best: float | None = None


def write_adapter(folder: Path, trainer: Trainer, **facts: Any) -> None:
    """Write what is trained, whole or not at all: its files, the tokenizer's, and `facts`."""
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet():
        save_trained(trainer.accelerator.unwrap_model(trainer.model), temporary)
        tokenizer: Any = trainer.processing_class
        tokenizer.save_pretrained(str(temporary))
    publish(temporary, folder, **facts)


def write_trained(run: Run, trainer: Trainer, **facts: Any) -> None:
    """Write RUN/adapter, or RUN/model where the model itself learned."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    write_adapter(run.adapter_path if is_adapter(model) else run.model_path, trainer, **facts)


def summarize(run: Run, steps: int, seconds: float, resumed_from: int) -> Outcome:
    """Read the figures of a finished run from its metrics; `seconds` are this sitting's."""
    records = read_metrics(run.metrics_path)
    tenth = max(1, len(records) // 10)

    def ends(name: str) -> tuple[float | None, float | None]:
        values = [r[name] for r in records if name in r]  # not those of evaluations alone
        return _mean(values[:tenth]), _mean(values[-tenth:])

    def measured(name: str) -> list[float]:
        return [r[name] for r in records if r.get(name) is not None]

    regrets, losses = measured("eval_regret"), measured("eval_loss")
    rewards = [] if regrets else measured("eval_reward")
    best = read_manifest(run.best_path)
    reward_first, reward_last = ends("reward")
    loss_first, loss_last = ends("loss")
    return Outcome(
        run=run.path,
        steps=steps,
        seconds=seconds,
        adapter=run.adapter_path if run.adapter_path.is_dir() else None,
        model=run.model_path if run.model_path.is_dir() else None,
        resumed_from=resumed_from,
        reward_first=reward_first,
        reward_last=reward_last,
        invalid_last=_mean([invalid_share(r) for r in records[-tenth:]]),
        loss_first=loss_first,
        loss_last=loss_last,
        eval_loss_first=losses[0] if losses else None,
        eval_loss=losses[-1] if losses else None,
        best=run.best_path if best else None,
        regret=regrets[-1] if regrets else None,
        regret_best=best.get("regret") if best else None,
        eval_reward=rewards[-1] if rewards else None,
        eval_reward_best=best.get("reward") if best else None,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
