"""What finished tasks of lm-eval gave, kept in tasks.jsonl, and one model's beside another's."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_tools.core.history import append
from gptoss_tools.core.overview import EVALUATION
from gptoss_tools.core.publish import write_json
from gptoss_tools.evaluation.tasks import Rows, Tasks
from gptoss_tools.settings import EvaluateSettings

NAME = "tasks.jsonl"


class Finished:
    """tasks.jsonl: a line per task and model, which says what it depends on; later lines count."""

    def __init__(self, path: Path, tasks: Tasks, settings: EvaluateSettings) -> None:
        self.path, self.definitions = path, tasks.definitions
        depends_on = ("limit", "seed", "dtype", "experts")
        self.same = {name: getattr(settings, name) for name in depends_on}
        self.same |= {"lm_eval": tasks.version}
        self.held: dict[tuple[str, str], Rows] = {}
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                record = json.loads(line)
                rows, sha, task = record.pop("rows"), record["model"], record["task"]
                if record == self._key(sha, task):
                    self.held[sha, task] = rows
        if text and not text.endswith("\n"):  # a kill cut the last line off
            append(path, "\n")

    def has(self, sha: str, task: str) -> bool:
        return (sha, task) in self.held

    def add(self, sha: str, task: str, rows: Rows) -> None:
        append(self.path, json.dumps({**self._key(sha, task), "rows": rows}) + "\n")
        self.held[sha, task] = rows

    def rows(self, sha: str) -> Rows:
        """Return the rows of all tasks asked for."""
        found: Rows = {}
        for task in self.definitions:
            found |= self.held[sha, task]
        return found

    def _key(self, sha: str, task: str) -> dict[str, Any]:
        return {"task": task, "model": sha, "definition": self.definitions.get(task), **self.same}


def beside(ours: Mapping[str, Any], other: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a task's row with every metric beside the base's, and their difference.

    Both were asked the same examples: where a metric is a mean over them, the difference's standard
    error is that of the mean of the examples' differences. Of any other metric it is not known.
    """
    metrics = {}
    for name, metric in ours["metrics"].items():
        figures = {"policy": metric["value"], "stderr": metric["stderr"]}
        theirs = None if other is None else other["metrics"].get(name)
        figures |= {
            "base": theirs and theirs["value"],
            "base_stderr": theirs and theirs["stderr"],
            "difference": theirs and metric["value"] - theirs["value"],
            "difference_stderr": other and theirs and _paired(name, ours, other),
        }
        metrics[name] = figures
    facts = {name: value for name, value in ours.items() if name not in ("metrics", "examples")}
    return {**facts, "metrics": metrics}


def _paired(metric: str, ours: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    values = [row["examples"][metric] for row in (ours, other)]
    if len(values[0]) != len(values[1]) or len(values[0]) < 2 or None in values[0] + values[1]:
        return None
    for row, examples in zip((ours, other), values, strict=True):
        if not math.isclose(np.mean(examples), row["metrics"][metric]["value"], rel_tol=1e-6):
            return None
    gains = np.subtract(*values)
    return float(gains.std(ddof=1) / math.sqrt(len(gains)))


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return what the folder's evaluation.json holds, nothing where there is no readable one."""
    try:
        content = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def keep_tasks(folder: Path, before: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Put the tasks of an earlier evaluation.json of the same weights back into a new one."""
    if before.get("tasks") and before.get("policy_sha256") == result["policy_sha256"]:
        result = {**result, "tasks": before["tasks"]}
        write_json(folder / EVALUATION, result)
    return result
