"""Maps of the held-out decisions, hour by day: what was chosen, what was best, what it cost."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gptoss_tools.report.collect import Row, RunRecord, value_of
from gptoss_tools.report.parts import Figure, Key, Panel
from gptoss_tools.report.style import action_colour, layout, plain
from gptoss_tools.report.words import short

MOST_LINES = 48  # lines of a map that can still be told apart
INVALID = "@invalid"
CROSS = "\N{MULTIPLICATION SIGN}"

Spot = tuple[int, int]
"""(line, column) of a map."""


@dataclass(frozen=True)
class Calendar:
    """Rows by day and hour: `days` are (episode, date) in order, `left_out` how many more exist."""

    days: list[tuple[str, str]]
    hours: list[int]
    cells: dict[Spot, list[Row]]
    left_out: int


def maps(record: RunRecord, place: int) -> list[Panel]:
    """Three maps of one run: chosen, best, regret; [] without decisions that have a timestamp."""
    calendar = read_calendar(record.decisions)
    if not calendar.cells:
        return []
    count = record.n_actions
    names = [*record.action_names(count), "invalid"]
    cells = calendar.cells.items()
    chosen = {
        s: _most([count if r.get("action") is None else r["action"] for r in rows])
        for s, rows in cells
    }
    best = {spot: _most([row["optimal_action"] for row in rows]) for spot, rows in cells}
    lost = {spot: _mean([value_of(row.get("regret")) for row in rows]) for spot, rows in cells}
    keys = [Key(names[k], action_colour(k, count)) for k in range(count)]
    if count in chosen.values():
        keys.append(Key("invalid", INVALID))
    note = ""
    if any(len(rows) > 1 for _, rows in cells):
        note = "Where an hour has several rows: the most frequent action, the mean regret."
    if calendar.left_out:
        note += f" {calendar.left_out} days that lost least are left out."
    return [
        Panel(f"map-chosen-{place}", "Chosen", _action_map(calendar, chosen, names), keys, place),
        Panel(f"map-best-{place}", "Best", _action_map(calendar, best, names), (), place),
        Panel(
            f"map-regret-{place}", "Regret", _regret_map(calendar, lost), (), place, note.strip()
        ),
    ]


def read_calendar(rows: Sequence[Row]) -> Calendar:
    """Sort rows by (episode, day) and hour; of more than MOST_LINES days the costliest stay."""
    timed: dict[tuple[str, str], list[tuple[int, Row]]] = defaultdict(list)
    for row in rows:
        moment = moment_of(row.get("timestamp"))
        if moment is not None and isinstance(row.get("optimal_action"), int):
            day = (str(row.get("episode") or ""), f"{moment:%Y-%m-%d}")
            timed[day].append((moment.hour, row))

    def lost(day: tuple[str, str]) -> float:
        return sum(v for _, row in timed[day] if (v := value_of(row.get("regret"))) > 0)

    kept = set(sorted(timed, key=lambda day: -lost(day))[:MOST_LINES])
    days = [day for day in timed if day in kept]
    found = {hour for day in days for hour, _ in timed[day]}
    hours = list(range(min(found), max(found) + 1)) if found else []
    cells: dict[Spot, list[Row]] = defaultdict(list)
    for y, day in enumerate(days):
        for hour, row in timed[day]:
            cells[y, hours.index(hour)].append(row)
    return Calendar(days, hours, dict(cells), len(timed) - len(days))


def moment_of(cell: Any) -> datetime | None:
    """Return the time that a cell names, None if it names none."""
    try:
        return datetime.fromisoformat(cell)
    except (TypeError, ValueError):
        return None


def _action_map(calendar: Calendar, found: dict[Spot, int], names: list[str]) -> Figure:
    count = len(names) - 1
    colours = [*(action_colour(k, count) for k in range(count)), INVALID]
    # Steps of one colour each: with z from -0.5 to K + 0.5, action k has [k, k + 1] / (K + 1).
    scale = [[(k + side) / (count + 1), colours[k]] for k in range(count + 1) for side in (0, 1)]
    figure = _map(
        calendar,
        found,
        lambda spot: plain(names[found[spot]]),
        zmin=-0.5,
        zmax=count + 0.5,
        colorscale=scale,
    )
    # The cross tells invalid answers from actions without any colour.
    figure["layout"]["annotations"] = [
        {
            "x": calendar.hours[x],
            "y": y,
            "text": CROSS,
            "showarrow": False,
            "font": {"size": 11, "color": "@oninvalid"},
        }
        for (y, x), action in found.items()
        if action == count
    ]
    return figure


def _regret_map(calendar: Calendar, lost: dict[Spot, float]) -> Figure:
    known = sorted(v for v in lost.values() if math.isfinite(v))
    # One catastrophe must not turn all else pale: the scale ends at the 95 % quantile.
    top = known[min(len(known) - 1, int(0.95 * len(known)))] if known else 0.0
    bar = {
        "orientation": "h",
        "thickness": 7,
        "len": 0.7,
        "x": 1,
        "xanchor": "right",
        "y": 1,
        "yanchor": "bottom",
        "outlinewidth": 0,
        "nticks": 4,
        "ticklen": 2,
        "tickfont": {"size": 10},
        "ypad": 2,
    }
    return _map(
        calendar,
        {spot: value for spot, value in lost.items() if math.isfinite(value)},
        lambda spot: f"regret {short(lost[spot])}",
        zmin=0,
        zmax=top or max(known, default=0.0) or 1.0,
        colorscale=[[0, "@heat0"], [1, "@heat1"]],
        showscale=True,
        colorbar=bar,
    )


def _map(
    calendar: Calendar, values: dict[Spot, Any], say: Callable[[Spot], str], **trace: Any
) -> Figure:
    days, hours, cells = calendar.days, calendar.hours, calendar.cells

    def text(spot: Spot) -> str:
        if spot not in values:
            return ""
        (episode, date), several = days[spot[0]], len(cells[spot])
        spoken = f"{plain(episode)} {date} {hours[spot[1]]:02d} h<br>{say(spot)}".strip()
        return f"{spoken} ({several} rows)" if several > 1 else spoken

    grid = [[(y, x) for x in range(len(hours))] for y in range(len(days))]
    heat = {
        "type": "heatmap",
        "z": [[values.get(spot) for spot in line] for line in grid],
        "x": hours,
        "text": [[text(spot) for spot in line] for line in grid],
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        "showscale": False,
        **trace,
    }
    # An episode's name stands at its first day; dates, where there is one episode only.
    several = len({episode for episode, _ in days}) > 1
    ticks = [y for y, day in enumerate(days) if not several or y == 0 or day[0] != days[y - 1][0]]
    labels = [_clip(days[y][0]) if several else days[y][1][5:] for y in ticks]
    look = layout(
        70 + max(10, min(26, 560 // len(days))) * len(days),
        margin={"t": 30},
        xaxis={
            "title": {"text": "hour", "standoff": 4, "font": {"size": 11}},
            "showline": False,
            "ticks": "",
            "dtick": 2 if len(hours) > 8 else 1,
        },
        yaxis={
            "range": [len(days) - 0.5, -0.5],
            "showgrid": False,
            "tickvals": ticks,
            "ticktext": [plain(label) for label in labels],
        },
    )
    return {"data": [heat], "layout": look}


def _most(values: Sequence[int]) -> int:
    """Return the most frequent value, of equally frequent ones the first seen."""
    return Counter(values).most_common(1)[0][0]


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _clip(text: str, limit: int = 14) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
