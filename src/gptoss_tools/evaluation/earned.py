"""What greedy answers earn by rewards that need no values of actions, with intervals.

Where a table has values, regret says more (`metrics`). Means and intervals leave masked answers
out; differences from the base are over the rows where both are known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptoss_tools.chat.actions import INVALID_REASONS, Decision, Reason
from gptoss_tools.chat.completions import Completion, Message
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.evaluation.intervals import Resamples
from gptoss_tools.evaluation.outcomes import ci95, mean
from gptoss_tools.evaluation.regrets import Floats
from gptoss_tools.rewards import Answered
from gptoss_tools.rewards.combined import Rewards, Scores


@dataclass(frozen=True)
class Earned:
    """What the answers to R rows earned, NaN where masked, and what became of each answer."""

    total: Floats
    apart: Mapping[str, Floats]
    reasons: Sequence[str]

    @classmethod
    def of(cls, scores: Scores, reasons: Sequence[str]) -> Earned:
        """Scores of all rows in order."""
        return cls(
            _floats(scores.total), {n: _floats(s) for n, s in scores.apart.items()}, list(reasons)
        )


def by_reward(table: DecisionTable) -> bool:
    """Whether answers to `table` are measured by rewards: its rows have no actions."""
    return table.q is None and table.rewards is None


def answer_to(
    table: DecisionTable, row: int, completion: Completion, decision: Decision
) -> Answered:
    """An answer to a row as rewards take it; what the row holds is as in training."""
    count = int(table.n_actions[row])
    values: dict[str, Any] = {}
    for kind, held in (("reward", table.rewards), ("q", table.q)):
        cells = [] if held is None else held[row, :count].tolist()
        values |= {f"{kind}_action_{k}": _value(cell) for k, cell in enumerate(cells)}
    facts = {"row": row, "prompt": table.prompts[row], "n_actions": count, **values}
    if table.names is not None:
        facts["actions"] = table.names[row]
    rewards = () if table.rewards is None else table.rewards[row, :count].tolist()
    return Answered(
        table.prompts[row], completion, {**table.cells(row), **facts}, decision, rewards
    )


def score_records(
    table: DecisionTable, records: Sequence[Mapping[str, Any]], rewards: Rewards
) -> Earned:
    """What the journal's records of all rows, in their order, earned."""
    answers = []
    for row, record in enumerate(records):
        said = [Message(name, record[name]) for name in ("analysis", "final") if record[name]]
        reason = Reason(record["reason"])
        cut = reason is Reason.TRUNCATED
        completion = Completion(tuple(said), "none" if cut else "return")
        answers.append(answer_to(table, row, completion, Decision(record["action"], reason)))
    return Earned.of(rewards(answers), [record["reason"] for record in records])


def assess_rewards(
    own: Earned,
    base: Earned | None = None,
    *,
    episodes: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """The sections of evaluation.json that rewards fill, ready for JSON; the others are None."""
    rows = len(own.total)
    draws = Resamples(
        np.arange(rows) if episodes is None else episodes, seed=seed, resamples=resamples
    )
    reasons = Counter(own.reasons)
    invalid = {str(reason): reasons[reason] / rows for reason in INVALID_REASONS}
    total = sum(reasons[reason] for reason in INVALID_REASONS)
    nothing = ("regret", "score", "top1", "near_optimal", "actions", "sampled")
    return {
        "n_rows": rows,
        "n_episodes": draws.n_episodes,
        "reward": _section(draws, own.total, None if base is None else base.total),
        "rewards": {
            name: _section(draws, each, None if base is None else base.apart[name])
            for name, each in own.apart.items()
        },
        "invalid": {
            "total": total / rows,
            **invalid,
            "n": rows,
            "upper95": None if total else min(1.0, 3 / rows),
        },
        **dict.fromkeys(nothing),
        "policies": [],
        "by_phase": {},
        "by_hour": {},
    }


def reward_rows(
    table: DecisionTable,
    records: Sequence[Mapping[str, Any]],
    own: Earned,
    base: Earned | None = None,
    episodes: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield decisions.jsonl's object of each row of a table without values."""
    for row, record in enumerate(records):
        yield {
            "row": row + 1,
            "where": table.where(row),
            "episode": None if episodes is None else episodes[row],
            "prompt": table.prompts[row],
            "reason": record["reason"],
            "reward": _value(own.total[row]),
            "scores": {name: _value(each[row]) for name, each in own.apart.items()},
            **{name: record[name] for name in ("analysis", "final", "completion", "tokens")},
            "base_reason": None if base is None else base.reasons[row],
            "base_reward": None if base is None else _value(base.total[row]),
        }


def _section(draws: Resamples, own: Floats, base: Floats | None) -> dict[str, Any]:
    gained = None if base is None else own - base
    return {
        "mean": mean(own),
        "ci95": ci95(draws, own),
        "base": None if base is None else mean(base),
        "base_ci95": None if base is None else ci95(draws, base),
        "difference": gained
        if gained is None
        else {
            "mean": mean(gained),
            "ci95": ci95(draws, gained),
            "n": int((~np.isnan(gained)).sum()),
        },
        "unknown": int(np.isnan(own).sum()),
    }


def _floats(scores: Sequence[float | None]) -> Floats:
    return np.array([math.nan if score is None else score for score in scores], dtype=float)


def _value(number: float) -> float | None:
    return None if math.isnan(number) else float(number)
