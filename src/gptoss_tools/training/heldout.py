"""Held-out rows answered while training goes on, and the adapter that did best on them.

Greedy answers draw nothing and gradients stay untouched, so a run with evaluations ends with the
bits of one without. Rows are shared out over the processes; rank 0 alone writes. What the figures
mean is the affair of evaluation.metrics and, for tables without values, evaluation.earned.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object
from trl.models.utils import unwrap_model_for_generation

from gptoss_tools.core.runs import Run
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.evaluation.earned import Earned, answer_to, assess_rewards
from gptoss_tools.evaluation.metrics import Choices, assess
from gptoss_tools.evaluation.policy import Answer, Policy, Source
from gptoss_tools.rewards.combined import Scores
from gptoss_tools.settings import DecodingSettings, TrainSettings
from gptoss_tools.training.measuring import Measuring

if TYPE_CHECKING:
    from gptoss_tools.training.grpo import DecisionTrainer


class OnTable(Measuring):
    """Measure greedy answers to a table's rows, and keep the adapter if none was better."""

    trainer: DecisionTrainer

    def __init__(self, run: Run, table: DecisionTable, settings: TrainSettings) -> None:
        super().__init__(run, settings.eval_steps or settings.max_steps)
        self.table, self.settings = table, settings

    def figures(self) -> dict[str, Any]:
        """Answer, and return what is logged with `eval_` before each name; on every process."""
        raise NotImplementedError

    def measure(self, step: int) -> None:
        """Measure, log, and keep the adapter if it is best, untrained included."""
        started = time.monotonic()
        figures = self.figures()
        figures["seconds"] = time.monotonic() - started
        self.log({f"eval_{name}": value for name, value in figures.items()})
        if self.trainer.accelerator.is_main_process:
            name = self.figure.removeprefix("eval_")
            self.keep(step, figures[name], **{name: figures[name]})
        self.trainer.accelerator.wait_for_everyone()


class HeldOut(OnTable):
    """Measure the regret of greedy answers.

    Logged as eval_regret (with eval_regret_low and _high, a 95 % interval over episodes),
    eval_reward, eval_top1, eval_invalid and, by phase, eval_regret/P.
    """

    figure = "eval_regret"

    def figures(self) -> dict[str, Any]:
        """Regret of the answers of all processes."""
        return summary(assess(self.table, self._answers(), episodes=episodes(self.table)))

    def _answers(self) -> Choices:
        found = greedy(self.trainer, self.table, self.settings)
        kept = [(row, a.decision.action, str(a.decision.reason)) for row, a in found]
        by_row: dict[int, Any] = {row: answer for row, *answer in gather_object(kept)}
        ordered = [by_row[row] for row in range(len(self.table))]
        actions = np.array([-1 if a is None else a for a, _ in ordered], dtype=np.int64)
        return Choices(actions, [reason for _, reason in ordered])


class HeldOutReward(OnTable):
    """Measure what greedy answers earn, where a table has no values to measure regret by.

    Logged as eval_reward (with eval_reward_low and _high, a 95 % interval), eval_invalid,
    eval_masked and, of several rewards, eval_reward/NAME.
    """

    figure = "eval_reward"
    more_is_better = True

    def figures(self) -> dict[str, Any]:
        """What the answers of all processes earn; each process scores its rows at once."""
        return reward_summary(assess_rewards(self._earned(), episodes=episodes(self.table)))

    def _earned(self) -> Earned:
        found = greedy(self.trainer, self.table, self.settings)
        rewards = self.trainer.reward.rewards
        scores = rewards([answer_to(self.table, r, a.completion, a.decision) for r, a in found])
        kept = [
            (row, scores.total[place], {n: s[place] for n, s in scores.apart.items()}, str(reason))
            for place, (row, reason) in enumerate((row, a.decision.reason) for row, a in found)
        ]
        ordered = sorted(gather_object(kept), key=lambda one: one[0])
        apart = {name: [one[2][name] for one in ordered] for name in rewards.kinds}
        return Earned.of(Scores([one[1] for one in ordered], apart), [one[3] for one in ordered])


def greedy(
    trainer: DecisionTrainer, table: DecisionTable, settings: TrainSettings
) -> list[tuple[int, Answer]]:
    """Answer this process's share of the rows; (row, answer) each, longest prompts first."""
    accelerator = trainer.accelerator
    mine = range(accelerator.process_index, len(table), accelerator.num_processes)
    decoding = DecodingSettings.model_validate(
        {"max_new_tokens": settings.max_completion_length, "batch_size": settings.eval_batch_size}
    )
    names = table.names
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
            answers = policy.answer(
                [table.prompts[row] for row in mine],
                [int(table.n_actions[row]) for row in mine],
                names=None if names is None else [names[row] for row in mine],
                decoding=decoding,
                prompt=settings,
                action_pattern=settings.action_pattern,
            )
            return [(mine[answer.index], answer) for answer in answers]
        finally:
            model.train(training)


def episodes(table: DecisionTable) -> list[str] | None:
    """Return each row's episode, None where the table names none."""
    if "episode" not in table.columns:
        return None
    return [str(cell) for cell in table.columns["episode"]]


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


def reward_summary(result: dict[str, Any]) -> dict[str, float | None]:
    """Return the same of an assessment by rewards."""
    reward = result["reward"]
    interval = reward["ci95"] or (None, None)
    apart = result["rewards"] if len(result["rewards"]) > 1 else {}
    return {
        "reward": reward["mean"],
        "reward_low": interval[0],
        "reward_high": interval[1],
        "invalid": result["invalid"]["total"],
        "masked": reward["unknown"] / result["n_rows"],
        **{f"reward/{name}": each["mean"] for name, each in apart.items()},
    }


def overlap(train: list[str], held_out: DecisionTable) -> int:
    """Return how many held-out prompts are trained on as well."""
    known = set(train)
    return sum(prompt in known for prompt in held_out.prompts)
