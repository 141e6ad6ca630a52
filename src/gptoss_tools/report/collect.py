"""Everything a report shows of one run, read from its folder.

Files are docs/evaluation.md's and those that training writes. A file that is missing is empty here;
one that cannot be read is empty and has a sentence in `notes`. Only the worst decisions keep their
texts, so that tables of any size fit into memory.
"""

from __future__ import annotations

import csv
import heapq
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.overview import EVALUATION, RunFacts, read_facts
from gptoss_tools.core.runs import Run, open_run
from gptoss_tools.errors import RunFolderError

FORMAT = 1
WORST = 20
TEXTS = ("prompt", "analysis", "final", "completion")
# Beyond this, completions.csv takes longer to read than the share of optimal actions is worth.
LARGEST_LOG = 300_000_000

Row = dict[str, Any]


@dataclass
class RunRecord:
    """One run as the report sees it; `label` tells it from the others.

    `decisions` are without their texts, which `worst` has: the rows that lost most, worst first.
    `asked` counts how often each action was the best one in training's prompts, {} if unknown.
    `tasks` is evaluation.json's part of that name; a file that holds nothing else is no evaluation.
    """

    run: Run
    label: str
    facts: RunFacts
    config: Row
    versions: Row
    metrics: list[Row]
    starts: list[Row]
    evaluation: Row | None = None
    tasks: Row = field(default_factory=dict)
    decisions: list[Row] = field(default_factory=list)
    worst: list[Row] = field(default_factory=list)
    closed_loop: list[Row] = field(default_factory=list)
    asked: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def settings(self) -> Row:
        return self.config.get("settings") or {}

    def found(self, *keys: str) -> Any:
        """Return what evaluation.json holds under nested `keys`, None where any is missing."""
        return dig(self.evaluation, *keys)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return (steps, values) of the metrics that have a finite `name`."""
        points = [(r["step"], v) for r in self.metrics if (v := number(r.get(name))) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def action_names(self, count: int | None = None) -> list[str]:
        """Return a name per action: the table's own, else `[k]`, as the answers are written."""
        names = self.found("action_names") or []
        count = count if count is not None else self.n_actions
        return [str(names[k]) if k < len(names) else f"[{k}]" for k in range(count)]

    @property
    def n_actions(self) -> int:
        """The largest number of actions any file of the run speaks of."""
        logged = [
            int(n[7:]) + 1
            for r in self.metrics
            for n in r
            if n[:7] == "action_" and n[7:].isdigit()
        ]
        evaluated = self.found("n_actions")
        return max([*logged, evaluated if isinstance(evaluated, int) else 0], default=0)

    @property
    def by_reward(self) -> bool:
        """Whether it learns from tables without values of actions: there is no regret."""
        logged = {name for record in self.metrics for name in record}
        earned = not logged.isdisjoint(("reward", "eval_reward"))
        return earned and self.n_actions == 0 and "eval_regret" not in logged


def open_runs(targets: Sequence[str | Path]) -> list[Run]:
    """Return the runs that `targets` mean, each once; errors are those of `open_run`."""
    runs: dict[Path, Run] = {}
    for target in targets:
        run = Run(open_run(target).path)
        if not run.config_path.is_file():
            raise RunFolderError(
                f"{run.path} is an adapter, not a run: it has no history to report",
                hint="gptoss runs lists run folders",
            )
        runs.setdefault(run.path.resolve(), run)
    return list(runs.values())


def collect(targets: Sequence[str | Path]) -> list[RunRecord]:
    """Read the runs that `targets` mean; runs of one name are told apart by their paths."""
    runs = open_runs(targets)
    names = Counter(run.path.resolve().name for run in runs)

    def label(run: Run) -> str:
        name = run.path.resolve().name
        return name if names[name] == 1 else str(run.path)

    return [_read(run, label(run)) for run in runs]


def dig(content: Any, *keys: str) -> Any:
    """Return the value under nested `keys` of JSON objects, None where any is missing."""
    for key in keys:
        if not isinstance(content, dict):
            return None
        content = content.get(key)
    return content


def number(value: Any) -> float | None:
    """Return a finite number as it is, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def value_of(cell: Any) -> float:
    """Return a Q value as JSON has it: null is unknown (nan), the text "-inf" is infeasible."""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return float(cell)
    return -math.inf if cell == "-inf" else math.inf if cell == "inf" else math.nan


def _read(run: Run, label: str) -> RunRecord:
    notes: list[str] = []
    place = run.evaluation_path
    decisions, worst = _decisions(place / "decisions.jsonl", notes)
    evaluation = _evaluation(place / EVALUATION, run, notes)
    tasks = dig(evaluation, "tasks")
    record = RunRecord(
        run=run,
        label=label,
        facts=read_facts(run.path),
        config=run.config,
        versions=run.versions,
        metrics=read_metrics(run.metrics_path),
        starts=list(_lines(run.path / "starts.jsonl", notes)),
        evaluation=None if tasks and "regret" not in (evaluation or {}) else evaluation,
        tasks=tasks if isinstance(tasks, dict) else {},
        decisions=decisions,
        worst=worst,
        closed_loop=list(_lines(place / "closed_loop.jsonl", notes)),
        notes=notes,
    )
    record.asked = _asked(_completions(record), notes)
    return record


def _evaluation(path: Path, run: Run, notes: list[str]) -> Row | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error}): gptoss evaluate {run.path} --overwrite")
        return None
    if dig(content, "format") != FORMAT:
        notes.append(f"{path} is of format {dig(content, 'format')}, this gptoss reads {FORMAT}")
        return None
    return content


def _decisions(path: Path, notes: list[str]) -> tuple[list[Row], list[Row]]:
    slim: list[Row] = []
    heap: list[tuple[float, int, Row]] = []
    for place, row in enumerate(_lines(path, notes)):
        slim.append({name: value for name, value in row.items() if name not in TEXTS})
        lost = value_of(row.get("regret"))
        if not lost > 0 and row.get("reason", "ok") == "ok":
            continue
        # Minus the place: of equal losses the first row counts as the worse one.
        item = (-math.inf if math.isnan(lost) else lost, -place, row)
        (heapq.heappush if len(heap) < WORST else heapq.heappushpop)(heap, item)
    return slim, [row for _, _, row in sorted(heap, reverse=True)]


def _lines(path: Path, notes: list[str]) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file; lines that are none are skipped and counted."""
    if not path.is_file():
        return
    broken = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            else:
                broken += bool(line.strip())
    if broken:
        notes.append(f"{path}: {broken} {'line is' if broken == 1 else 'lines are'} no JSON object")


def _completions(record: RunRecord) -> Path:
    named = record.settings.get("completion_log_path")
    return Path(record.config.get("cwd") or "", named) if named else record.run.completions_path


def _asked(path: Path, notes: list[str]) -> dict[int, int]:
    """Count the best actions of training's prompts, from the column target_action."""
    counts: Counter[int] = Counter()
    if not path.is_file() or path.stat().st_size > LARGEST_LOG:
        return {}
    csv.field_size_limit(1 << 30)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines):
                if (row.get("target_action") or "").isdigit():
                    counts[int(row["target_action"])] += 1
    except (OSError, csv.Error) as error:
        notes.append(f"{path} cannot be read: {error}")
    return dict(sorted(counts.items()))
