"""decisions.jsonl: what was asked, answered and lost, one line per row of the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_tools.core.publish import write_text
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.data.tables import is_missing
from gptoss_tools.evaluation.interview import choices
from gptoss_tools.evaluation.metrics import Choices, row_scores

Record = Mapping[str, Any]


def decision_rows(
    table: DecisionTable,
    answers: Sequence[Record],
    *,
    base: Sequence[Record] | None = None,
    draws: Sequence[Sequence[Record]] = (),
    baselines: Mapping[str, Choices] | None = None,
    episodes: Sequence[str] | None = None,
    tie_tolerance: float = 1e-9,
) -> Iterator[dict[str, Any]]:
    """Yield one object per row of `table`, with the keys that docs/evaluation.md lists."""
    scores = row_scores(table, choices(answers), tie_tolerance)
    base_scores = None if base is None else row_scores(table, choices(base), tie_tolerance)
    for row, answer in enumerate(answers):
        width = int(table.n_actions[row])
        q = [] if table.q is None else table.q[row, :width]
        yield {
            "row": row + 1,
            "where": table.where(row),
            "episode": None if episodes is None else episodes[row],
            "phase": _cell(table, "phase", row),
            "timestamp": _cell(table, "timestamp", row),
            "prompt": table.prompts[row],
            "q": [_value(v) for v in q],
            "rewards": (
                None if table.rewards is None else [_value(v) for v in table.rewards[row, :width]]
            ),
            "names": list(table.names[row]) if table.names and table.names[row] else None,
            "optimal_action": _best(q),
            "action": answer["action"],
            "reason": answer["reason"],
            "regret": _value(scores.regret[row]),
            "normalised": _value(scores.normalised[row]),
            "reward": _value(scores.reward[row]),
            "top1": bool(scores.top1[row]),
            "analysis": answer["analysis"],
            "final": answer["final"],
            "completion": answer["completion"],
            "tokens": answer["tokens"],
            "base_action": None if base is None else base[row]["action"],
            "base_reason": None if base is None else base[row]["reason"],
            "base_regret": None if base_scores is None else _value(base_scores.regret[row]),
            "baselines": {name: _action(c, row) for name, c in (baselines or {}).items()},
            "votes": _votes([draw[row]["action"] for draw in draws], width) if draws else None,
        }


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, the file whole or not at all."""
    text = (json.dumps(line, ensure_ascii=False, allow_nan=False) for line in lines)
    write_text(path, "".join(f"{line}\n" for line in text))


def _cell(table: DecisionTable, column: str, row: int) -> str | None:
    if column not in table.columns:
        return None
    cell = table.columns[column].iloc[row]
    return None if is_missing(cell) else str(cell)


def _value(number: float) -> float | str | None:
    """A value as JSON has it: unknown is null, infeasible the text "-inf"."""
    if math.isnan(number):
        return None
    return float(number) if math.isfinite(number) else str(float(number))


def _action(choice: Choices, row: int) -> int | None:
    action = int(choice.action[row])
    return action if action >= 0 else None


def _best(q: Sequence[float] | np.ndarray) -> int | None:
    known = np.where(np.isnan(q), -np.inf, q)
    return int(known.argmax()) if np.isfinite(known).any() else None


def _votes(actions: Sequence[int | None], width: int) -> list[int]:
    """Count the draws per action, invalid ones last."""
    return np.bincount([width if a is None else a for a in actions], minlength=width + 1).tolist()
