"""When held-out rows are measured, and what a resumed run forgets of it.

What is measured, and how, is the subclasses': regret (`heldout`) and loss (`sft_heldout`).
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.publish import read_manifest, remove
from gptoss_tools.core.runs import Run
from gptoss_tools.training.outcome import write_adapter


class Measuring(TrainerCallback):
    """Measure before the first step, every `every` steps and after the last one.

    `figure` names what is to be least among the logged figures, or largest where `more_is_better`;
    `best` is its best value so far, whose adapter is in RUN/adapter-best. `trainer` is set once
    there is one.
    """

    figure: str
    more_is_better = False
    trainer: Any

    def __init__(self, run: Run, every: int) -> None:
        self.run, self.every = run, every
        self.best: float | None = None

    def measure(self, step: int) -> None:
        """Measure, log, and keep the adapter if none was better; on every rank."""
        raise NotImplementedError

    def on_train_begin(self, args, state, control, **kwargs):
        """Measure what is untrained; forget a best one that lies ahead of a resumed run."""
        step = state.global_step
        if state.is_world_process_zero:
            held = read_manifest(self.run.best_path)
            if held is not None and held.get("step", 0) > step:
                remove(self.run.best_path)  # of steps that are done again: it will come back
            seen = [r for r in read_metrics(self.run.metrics_path) if r["step"] <= step]
            known = [r[self.figure] for r in seen if r.get(self.figure) is not None]
            pick = max if self.more_is_better else min
            self.best = pick(known, default=None) if step else None
        if step == 0:
            self.measure(step)

    def on_step_end(self, args, state, control, **kwargs):
        """Measure where it is due."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step)

    def keep(self, step: int, value: float | None, **facts: Any) -> None:
        """Keep the adapter if none was better, untrained included; on rank 0."""
        if value is None:
            return
        if self.best is not None and (
            value <= self.best if self.more_is_better else value >= self.best
        ):
            return
        self.best = value
        if step:
            write_adapter(self.run.best_path, self.trainer, step=step, **facts)

    def log(self, logs: dict[str, Any]) -> None:
        """Log the figures as a record of their own."""
        control = self.trainer.control
        due = control.should_log
        # Not the trainer's own `log`: TRL's would publish and forget its training metrics.
        Trainer.log(self.trainer, logs)
        control.should_log = due  # logging has cleared it, and the step's own record is to come
