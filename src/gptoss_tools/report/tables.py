"""Tables of a report: phases, settings with their origins, versions, starts, and what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gptoss_tools.report.collect import Row, RunRecord, number
from gptoss_tools.report.parts import Table
from gptoss_tools.report.words import DASH, between, percent, short, whole

# What tells two runs apart without meaning anything.
NAMES = ("output_dir", "run_name", "dry_run", "resume")


def phases(record: RunRecord, place: int) -> Table | None:
    """The held-out figures of each phase; None where the table names no phases."""
    found = record.found("by_phase")
    if not found:
        return None
    head = ["phase", "rows", "regret", "95 %", "base", "best action found", "invalid"]
    rows = [
        [
            name,
            whole(part.get("n_rows")),
            short(number(part.get("regret"))),
            between(part.get("ci95")),
            short(number(part.get("base"))),
            percent(number(part.get("top1"))),
            percent(number(part.get("invalid"))),
        ]
        for name, part in found.items()
    ]
    return Table(head, rows, "By phase", place)


def rewards(record: RunRecord, place: int) -> Table | None:
    """What greedy answers to held-out rows earn, each reward apart; None where regret says it."""
    found = record.found("rewards")
    if not found:
        return None
    parts = {"sum": record.found("reward"), **found} if len(found) > 1 else found
    head = ["reward", "weight", "mean", "95 %", "base", "masked"]
    rows = [
        [
            name,
            short(number(part.get("weight"))),
            short(number(part.get("mean"))),
            between(part.get("ci95")),
            short(number(part.get("base"))),
            whole(part.get("unknown")),
        ]
        for name, part in parts.items()
    ]
    return Table(head, rows, "Held-out answers, by reward", place)


def differences(records: Sequence[RunRecord]) -> Table | None:
    """The settings and facts in which runs differ, one column per run; None for one run."""
    if len(records) < 2:
        return None
    columns = [_told(record) for record in records]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, DASH) for column in columns)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if not rows:
        rows = [["nothing", *([""] * len(records))]]
    return Table(["differs", *(r.label for r in records)], rows, "What differs")


def settings(records: Sequence[RunRecord]) -> Table:
    """All settings, with the origin beside each value; rows that differ are marked."""
    head = ["setting"]
    for record in records:
        head += [record.label if len(records) > 1 else "value"]
        head += ["origin"] if _origins(record) else []
    names = dict.fromkeys(name for record in records for name in record.settings)
    rows, marked = [], set()
    for name in names:
        cells, values = [name], set()
        for record in records:
            value = _show(record.settings[name]) if name in record.settings else DASH
            values.add(value)
            cells.append(value)
            if _origins(record):
                cells.append(str(_origins(record).get(name, "")))
        if len(values) > 1:
            marked.add(len(rows))
        rows.append(cells)
    return Table(head, rows, "Settings", marked=frozenset(marked), folded=True)


def versions(records: Sequence[RunRecord]) -> Table:
    """What the bits of the runs depend on, one column per run."""
    names = dict.fromkeys(name for record in records for name in record.versions)
    rows = [[name, *(_show(r.versions.get(name)) for r in records)] for name in names]
    marked = frozenset(i for i, row in enumerate(rows) if len(set(row[1:])) > 1)
    head = ["package", *(r.label if len(records) > 1 else "version" for r in records)]
    return Table(head, rows, "Versions", marked=marked, folded=True)


def starts(record: RunRecord, place: int) -> Table | None:
    """Every start of a run: when, where, after which step, by which command line."""
    if not record.starts:
        return None
    rows = [
        [
            str(start.get("segment", "")),
            str(start.get("time") or "")[:19].replace("T", " "),
            str(start.get("machine") or ""),
            str(start.get("after_step", "")),
            str(start.get("max_steps", "")),
            _line(start.get("command")) or DASH,
        ]
        for start in record.starts
    ]
    head = ["start", "time", "machine", "after step", "to step", "command"]
    return Table(head, rows, "Starts", place)


def _told(record: RunRecord) -> dict[str, str]:
    """Return what may differ between runs and mean something."""
    shown = {k: _show(v) for k, v in record.settings.items() if k not in NAMES}
    data = record.config.get("data") or {}
    shown |= {f"data {name}": _show(value) for name, value in data.items()}
    for name in ("base_sha256", "world_size"):
        shown[name] = _show(record.config.get(name))
    if record.evaluation is not None:
        shown["evaluated data sha256"] = _show(record.found("data_sha256"))
    return shown | {f"version of {k}": _show(v) for k, v in record.versions.items()}


def _origins(record: RunRecord) -> Row:
    """Return where each setting came from; older runs did not write it down."""
    origins = record.config.get("origins")
    return origins if isinstance(origins, dict) else {}


def _show(value: Any) -> str:
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value[:16] if len(value) == 64 and value.isalnum() else value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value) or DASH
    return json.dumps(value, ensure_ascii=False)


def _line(command: Any) -> str:
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")
