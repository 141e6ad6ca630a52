"""Tasks of lm-evaluation-harness: one small table per run, the policy beside its base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_tools.report.collect import RunRecord, dig, number
from gptoss_tools.report.parts import Section, Table
from gptoss_tools.report.words import DASH, short, whole

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def section(records: Sequence[RunRecord]) -> Section | None:
    """The tasks of all runs; None where no run was asked any."""
    made = [table(record, place) for place, record in enumerate(records)]
    tables = [one for one in made if one is not None]
    lead = (
        "What else the policy can do, or no longer can, by lm-evaluation-harness. Behind "
        f"{PLUS_MINUS} is the standard error; a difference is taken example by example."
    )
    return Section("tasks", "Tasks", lead, tables=tables) if tables else None


def table(record: RunRecord, place: int) -> Table | None:
    """A row per task and metric; a task that is part of a group is in the group's row."""
    rows = [
        [
            name,
            metric,
            whole(dig(task, "n")),
            _figure(figures, "base", "base_stderr"),
            _figure(figures, "policy", "stderr"),
            _figure(figures, "difference", "difference_stderr"),
        ]
        for name, task in record.tasks.items()
        if dig(task, "part_of") is None
        for metric, figures in (dig(task, "metrics") or {}).items()
    ]
    head = ["task", "metric", "examples", "base", "policy", "difference"]
    return Table(head, rows, "By task", place) if rows else None


def _figure(figures: Any, name: str, error: str) -> str:
    value, spread = (number(dig(figures, key)) for key in (name, error))
    if value is None:
        return DASH
    return short(value) if spread is None else f"{short(value)}\n{PLUS_MINUS} {short(spread)}"
