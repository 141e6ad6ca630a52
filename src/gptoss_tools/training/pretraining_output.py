"""What a pretraining run writes for people: a log of every sitting, the sample, the output file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from gptoss_tools.core.history import append
from gptoss_tools.core.publish import write_text
from gptoss_tools.core.runs import Run

RULE = "=" * 80


class SittingLog(TrainerCallback):
    """logs/training_log_*.log of a fresh sitting, logs/resume_training_log_*.log of a resumed one.

    For rank 0 only. Evaluations are told to `notice` as well.
    """

    def __init__(
        self, run: Run, reached: int, facts: Mapping[str, Any], notice: Callable[[str], None]
    ):
        self.notice = notice
        kind = "resume_training_log" if reached else "training_log"
        folder = run.path / "logs"
        folder.mkdir(exist_ok=True)
        self.path = folder / f"{kind}_{time.strftime('%Y%m%d-%H%M%S')}.log"
        title = f"Resuming from step {reached}" if reached else "Training from the beginning"
        self.write(RULE, title, *(f"{name}: {value}" for name, value in facts.items()), RULE)

    def write(self, *lines: str) -> None:
        """Append lines."""
        append(self.path, "\n".join(lines) + "\n")

    def tell(self, line: str) -> None:
        """Write a line, and say it."""
        self.write(line)
        self.notice(line)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """One line for each record of a step."""
        if logs and "loss" in logs:
            shown = (("loss", ".4f"), ("grad_norm", ".3f"), ("learning_rate", ".3g"))
            parts = [f"{name} {logs[name]:{form}}" for name, form in shown if name in logs]
            self.write(f"step {state.global_step}: {', '.join(parts)}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """One line for each evaluation, that at the start of a resumed sitting included."""
        found = metrics or {}
        parts = [
            f"{words} loss {found[f'eval_{part}loss']:.4f} +- {found[f'eval_{part}loss_se']:.4f}"
            for words, part in (("train", "train_"), ("validation", ""))
        ]
        self.tell(f"step {state.global_step}: {', '.join(parts)}")


def describe_change(first: Mapping[str, float], last: Mapping[str, float]) -> str:
    """Say what a sitting did to the loss of both parts."""
    parts = []
    for words, name in (("train", "eval_train_loss"), ("validation", "eval_loss")):
        change = last[name] - first[name]
        parts.append(f"{words} loss {first[name]:.4f} -> {last[name]:.4f} ({change:+.4f})")
    return ", ".join(parts)


def write_output(run: Run, settings: Mapping[str, Any], sample: str) -> None:
    """Write output.txt: HYPERPARAMETERS, then OUTPUT."""
    lines = [RULE, "HYPERPARAMETERS", RULE]
    lines += [f"{name.rstrip('_')}: {value}" for name, value in settings.items()]
    lines += ["", RULE, "OUTPUT", RULE, sample]
    write_text(run.path / "output.txt", "\n".join(lines) + "\n")
