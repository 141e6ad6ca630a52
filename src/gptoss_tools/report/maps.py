"""Maps of the held-out decisions, hour by day: what was chosen, what was best, what it cost."""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gptoss_tools.report.collect import Row, RunRecord, value_of
from gptoss_tools.report.parts import Figure, Key, Panel
from gptoss_tools.report.style import action_colour, heat, layout, plain
from gptoss_tools.report.words import short

MOST_LINES = 48  # lines of a map that can still be told apart
NOTHING = 1e-9  # regret below this is rounding
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


def maps(records: Sequence[RunRecord]) -> list[Panel]:
    """Three maps for each run with timed decisions: chosen, best, regret; one scale of regret."""
    calendars = {place: read_calendar(record.decisions) for place, record in enumerate(records)}
    calendars = {place: calendar for place, calendar in calendars.items() if calendar.cells}
    losses = {
        place: {
            spot: _mean([value_of(row.get("regret")) for row in rows])
            for spot, rows in calendar.cells.items()
        }
        for place, calendar in calendars.items()
    }
    breaks = classes([value for lost in losses.values() for value in lost.values()])
    panels = []
    for place, calendar in calendars.items():
        panels += _three(records[place], place, calendar, losses[place], breaks)
    return panels


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


def _three(
    record: RunRecord, place: int, calendar: Calendar, lost: dict[Spot, float], breaks: list[float]
) -> list[Panel]:
    count, cells = record.n_actions, calendar.cells.items()
    names = [*record.action_names(count), "invalid"]
    chosen = {
        spot: _most([count if r.get("action") is None else r["action"] for r in rows])
        for spot, rows in cells
    }
    best = {spot: _most([row["optimal_action"] for row in rows]) for spot, rows in cells}
    keys = [Key(names[k], action_colour(k, count)) for k in range(count)]
    names_of = ["0", *(f"to {short(limit, 2)}" for limit in breaks)]
    shades = [Key(text, heat(i, len(breaks) + 1)) for i, text in enumerate([*names_of, "more"])]
    own = [*keys, Key("invalid", INVALID)] if count in chosen.values() else keys
    note = ""
    if any(len(rows) > 1 for _, rows in cells):
        note = "Where an hour has several rows: the most frequent action, the mean regret."
    if calendar.left_out:
        note += f" {calendar.left_out} days that lost least are left out."
    one, other = _action_map(calendar, chosen, names), _action_map(calendar, best, names)
    costs = _regret_map(calendar, lost, breaks)
    return [
        Panel(f"map-chosen-{place}", "Chosen", one, own, place, note.strip()),
        Panel(f"map-best-{place}", "Best", other, keys, place),
        Panel(f"map-regret-{place}", "Regret", costs, shades, place),
    ]


def _action_map(calendar: Calendar, found: dict[Spot, int], names: list[str]) -> Figure:
    count = len(names) - 1
    colours = [*(action_colour(k, count) for k in range(count)), INVALID]
    figure = _map(calendar, found, lambda spot: plain(names[found[spot]]), colours)
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


def _regret_map(calendar: Calendar, lost: dict[Spot, float], breaks: list[float]) -> Figure:
    known = {spot: value for spot, value in lost.items() if math.isfinite(value)}
    ranks = {
        spot: 0 if value <= NOTHING else 1 + bisect.bisect_left(breaks, value)
        for spot, value in known.items()
    }
    colours = [heat(rank, len(breaks) + 1) for rank in range(len(breaks) + 2)]
    return _map(calendar, ranks, lambda spot: f"regret {short(known[spot])}", colours)


def classes(values: Sequence[float]) -> list[float]:
    """Return where the classes of regret above 0 end, the last one open: at 1/3, 2/3 and 0.9.

    Regrets span decades, so an even scale would show one catastrophe and nothing else.
    """
    known = sorted(value for value in values if NOTHING < value < math.inf)
    if not known:
        return []
    found = [known[min(len(known) - 1, int(share * len(known)))] for share in (1 / 3, 2 / 3, 0.9)]
    return sorted(set(found) - {known[-1]})


def _map(
    calendar: Calendar, values: dict[Spot, int], say: Callable[[Spot], str], colours: list[str]
) -> Figure:
    """Draw whole numbers, each in its colour: with z from -0.5 on, k has a step of its own."""
    count = len(colours)
    scale = [[(k + side) / count, colours[k]] for k in range(count) for side in (0, 1)]
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
        "zmin": -0.5,
        "zmax": count - 0.5,
        "colorscale": scale,
    }
    # An episode's name stands at its first day; dates, where there is one episode only.
    several = len({episode for episode, _ in days}) > 1
    ticks = [y for y, day in enumerate(days) if not several or y == 0 or day[0] != days[y - 1][0]]
    labels = [_clip(days[y][0]) if several else days[y][1][5:] for y in ticks]
    # Thin lines keep episodes apart.
    between = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": y - 0.5,
            "y1": y - 0.5,
            "line": {"color": "@grid", "width": 1},
            "layer": "below",
        }
        for y in (ticks[1:] if several else [])
    ]
    look = layout(
        54 + max(10, min(26, 560 // len(days))) * len(days),
        shapes=between,
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
