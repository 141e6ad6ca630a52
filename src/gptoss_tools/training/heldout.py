"""Held-out rows answered while training goes on, and the adapter that lost the least on them.

Greedy answers draw nothing and gradients stay untouched, so a run with evaluations ends with the
bits of one without. Rows are shared out over the processes; rank 0 alone writes. What the figures
mean is evaluation.metrics' affair.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object
from trl.models.utils import unwrap_model_for_generation

from gptoss_tools.core.data import DecisionTable
from gptoss_tools.core.runs import Run
from gptoss_tools.evaluation.metrics import Choices, assess
from gptoss_tools.evaluation.policy import Policy, Source
from gptoss_tools.settings import DecodingSettings, TrainSettings
from gptoss_tools.training.measuring import Measuring
from gptoss_tools.training.outcome import write_adapter

if TYPE_CHECKING:
    from gptoss_tools.training.grpo import DecisionTrainer


class HeldOut(Measuring):
    """Measure the regret of greedy answers.

    Logged as eval_regret (with eval_regret_low and _high, a
    95 % interval over episodes), eval_reward, eval_top1, eval_invalid and, by phase, eval_regret/P.
    """

    figure = "eval_regret"
    trainer: DecisionTrainer

    def __init__(self, run: Run, table: DecisionTable, settings: TrainSettings) -> None:
        super().__init__(run, settings.eval_steps or settings.max_steps)
        self.table, self.settings = table, settings

    def measure(self, step: int) -> None:
        """Answer, log, and keep the adapter if none was better, untrained included."""
        started = time.monotonic()
        figures = summary(assess(self.table, self._answers(), episodes=self._episodes()))
        figures["seconds"] = time.monotonic() - started
        self.log({f"eval_{name}": value for name, value in figures.items()})
        if self.trainer.accelerator.is_main_process:
            self._keep(step, figures["regret"])
        self.trainer.accelerator.wait_for_everyone()

    def _keep(self, step: int, regret: float | None) -> None:
        if regret is None or (self.best is not None and regret >= self.best):
            return
        self.best = regret
        if step:
            write_adapter(self.run.best_path, self.trainer, step=step, regret=regret)

    def _answers(self) -> Choices:
        trainer, settings = self.trainer, self.settings
        accelerator = trainer.accelerator
        mine = range(accelerator.process_index, len(self.table), accelerator.num_processes)
        decoding = DecodingSettings.model_validate(
            {
                "max_new_tokens": settings.max_completion_length,
                "batch_size": settings.eval_batch_size,
            }
        )
        names = self.table.names
        training = trainer.model.training
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            accelerator,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            model.eval()
            try:
                policy = Policy(
                    model, trainer.processing_class, Source(settings.model, None, "in training")
                )
                found = [
                    (mine[answer.index], answer.decision.action, str(answer.decision.reason))
                    for answer in policy.answer(
                        [self.table.prompts[row] for row in mine],
                        [int(self.table.n_actions[row]) for row in mine],
                        names=None if names is None else [names[row] for row in mine],
                        decoding=decoding,
                        action_pattern=settings.action_pattern,
                    )
                ]
            finally:
                model.train(training)
        by_row: dict[int, Any] = {row: answer for row, *answer in gather_object(found)}
        ordered = [by_row[row] for row in range(len(self.table))]
        actions = np.array([-1 if a is None else a for a, _ in ordered], dtype=np.int64)
        return Choices(actions, [reason for _, reason in ordered])

    def _episodes(self) -> list[str] | None:
        if "episode" not in self.table.columns:
            return None
        return [str(cell) for cell in self.table.columns["episode"]]


def summary(result: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures of an assessment that are logged while a run trains."""
    interval = result["regret"]["ci95"] or (None, None)
    figures = {
        "regret": result["regret"]["mean"],
        "regret_low": interval[0],
        "regret_high": interval[1],
        "top1": result["top1"],
        "invalid": result["invalid"]["total"],
    }
    if result["reward"] is not None:
        figures["reward"] = result["reward"]["mean"]
    for phase, part in result["by_phase"].items():
        figures[f"regret/{phase}"] = part["regret"]
    return figures


def overlap(train: list[str], held_out: DecisionTable) -> int:
    """Return how many held-out prompts are trained on as well."""
    known = set(train)
    return sum(prompt in known for prompt in held_out.prompts)
