"""Figures of the held-out decisions as a whole: which instead of which, at what stake, how sure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gptoss_tools.report.collect import Row, RunRecord, number, value_of
from gptoss_tools.report.parts import Key, Panel
from gptoss_tools.report.style import SILENT, axis, layout, line, plain, run_colour
from gptoss_tools.report.words import REASONS, percent, short

MOST_POINTS = 3000  # points that any browser draws at once
INVALID = "@invalid"


def confusion(record: RunRecord, place: int) -> Panel:
    """Best action by chosen action: counts, shaded by their share of the row."""
    name, title = f"confusion-{place}", "Best action (rows) by chosen action (columns)"
    counts = record.found("actions", "confusion")
    if not counts:
        return Panel(name, title, missing=unevaluated(record), run=place)
    names = [plain(text) for text in record.action_names(len(counts))]
    columns = [*names, "invalid"][: len(counts[0])]
    shares = [[n / max(sum(row), 1) for n in row] for row in counts]
    recall = record.found("actions", "recall") or [None] * len(names)
    right = [
        text if r is None else f"{text}  {percent(r)}"
        for text, r in zip(names, recall, strict=True)
    ]
    heat = {
        "type": "heatmap",
        "z": shares,
        "zmin": 0,
        "zmax": 1,
        "xgap": 2,
        "ygap": 2,
        "colorscale": [[0, "@heat0"], [1, "@heat1"]],
        "showscale": False,
        "customdata": [
            [f"best {best}, chose {chose}: {n}" for chose, n in zip(columns, row, strict=True)]
            for best, row in zip(names, counts, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    labels = [
        {
            "x": x,
            "y": y,
            "text": str(n) if n else "\N{MIDDLE DOT}",
            "showarrow": False,
            "font": {"size": 12, "color": "@onheat1" if shares[y][x] > 0.55 else "@onheat0"},
        }
        for y, row in enumerate(counts)
        for x, n in enumerate(row)
    ]
    ticks = {"showgrid": False, "showline": False, "ticks": ""}
    look = layout(
        60 + 44 * len(counts),
        annotations=labels,
        xaxis={**ticks, "side": "top", "tickvals": list(range(len(columns))), "ticktext": columns},
        yaxis={
            **ticks,
            "range": [len(counts) - 0.5, -0.5],
            "tickvals": list(range(len(counts))),
            "ticktext": right,
        },
    )
    note = "Shaded by the share of the row; beside each name, how often it was found."
    return Panel(name, title, {"data": [heat], "layout": look}, run=place, note=note)


def stakes(record: RunRecord, place: int) -> Panel:
    """Regret against the gap between the best and the second-best action."""
    name, title = f"stakes-{place}", "Regret by what was at stake"
    points = [point for row in record.decisions if (point := _stake(row)) is not None]
    if not points:
        return Panel(name, title, missing=unevaluated(record), run=place)
    shown = _thinned(points)
    x_axis, put_x = scale([gap for gap, _, _ in points])
    y_axis, put_y = scale([lost for _, lost, _ in points])
    traces = [_diagonal([gap for gap, _, _ in points if gap > 0], put_x, put_y)]
    looks = {
        True: {"symbol": "circle", "opacity": 0.55, "color": run_colour(place)},
        False: {"symbol": "x-thin", "color": INVALID, "line": {"width": 2, "color": INVALID}},
    }
    for valid, look in looks.items():
        part = [p for p in shown if (p[2].get("reason") == "ok") == valid]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [put_x(gap) for gap, _, _ in part],
                "y": [put_y(lost) for _, lost, _ in part],
                "marker": {"size": 7, **look},
                "text": [_about(*point) for point in part],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    x_title = {"text": "best minus second best, in the unit of Q", "standoff": 6}
    look = layout(360, xaxis={**x_axis, "title": {**x_title, "font": {"size": 11}}}, yaxis=y_axis)
    keys = [
        Key("answered", run_colour(place), "point"),
        Key("invalid", INVALID, "point"),
        Key("took the second best", "@muted", "dashed"),
    ]
    note = "Points at 0 found the best action; those above the line did worse than the second best."
    if len(shown) < len(points):
        note += f" {len(shown)} of {len(points)} points are drawn, all the worst among them."
    return Panel(name, title, {"data": traces, "layout": look}, keys, place, note)


def calibration(record: RunRecord, place: int) -> Panel | None:
    """How often the most frequent of several answers is right, by the share of votes it got."""
    found = record.found("sampled", "calibration") or {}
    bins = [b for b in found.get("bins") or [] if b.get("n")]
    if not bins:
        return None
    largest, colour = max(b["n"] for b in bins), run_colour(place)
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [b["confidence"] for b in bins],
        "y": [b["correct"] for b in bins],
        "line": {"color": colour, "width": 1},
        "marker": {
            "size": [7 + 17 * math.sqrt(b["n"] / largest) for b in bins],
            "color": colour,
            "opacity": 0.75,
            "line": {"width": 0},
        },
        "customdata": [b["n"] for b in bins],
        "hovertemplate": "votes %{x:.0%}, right %{y:.0%}, %{customdata} rows<extra></extra>",
    }
    even = line([0, 1], [0, 1], "@muted", width=1, dash="dot", **SILENT)
    share_axis = {"tickformat": ".0%", "range": [0, 1.05]}
    x_title = {"text": "share of votes", "standoff": 6, "font": {"size": 11}}
    look = layout(360, xaxis={**share_axis, "title": x_title}, yaxis=share_axis)
    note = f"Expected calibration error {percent(number(found.get('ece')))}."
    if (distance := number(found.get("tv"))) is not None:
        note += f" Votes lie {percent(distance)} (total variation) from the table's rewards."
    title = f"Right answers by share of {record.found('sampled', 'n')} votes"
    keys = [Key("perfectly calibrated", "@muted", "dashed")]
    figure = {"data": [even, trace], "layout": look}
    return Panel(f"calibration-{place}", title, figure, keys, place, note)


def unevaluated(record: RunRecord) -> str:
    """Say which command would fill the place of an evaluation."""
    return f"no evaluation yet: gptoss evaluate {record.path}"


def scale(values: Sequence[float]) -> tuple[dict[str, Any], Callable[[float], float]]:
    """Return a value axis and how values are put on it: logarithmic where they span a lot.

    On a logarithmic axis zeros stand at the lower end, on a tick of their own, named 0.
    """
    positive = [v for v in values if v > 0]
    if not positive or max(positive) < 100 * min(positive):
        return axis(value=True, rangemode="tozero"), lambda v: v
    high = math.ceil(math.log10(max(positive)))
    low = max(math.floor(math.log10(min(positive))), high - 5)
    floor = 10.0 ** (low - 1)
    ends = [low - 1.2, math.log10(max(positive)) + 0.2]
    decades = [10.0**e for e in range(low, high + 1)]
    names = ["0", *(short(tick, 1) for tick in decades)]
    shown = axis(value=True, type="log", range=ends, tickvals=[floor, *decades], ticktext=names)
    return shown, lambda v: max(v, floor)


def _stake(row: Row) -> tuple[float, float, Row] | None:
    """Return (gap, regret, row), None where either is unknown."""
    finite = sorted(v for q in row.get("q") or () if math.isfinite(v := value_of(q)))
    lost = value_of(row.get("regret"))
    if len(finite) < 2 or not math.isfinite(lost):
        return None
    return finite[-1] - finite[-2], lost, row


def _thinned(points: list[tuple[float, float, Row]]) -> list[tuple[float, float, Row]]:
    """Return at most MOST_POINTS: half of them the costliest, half an even part of the others."""
    if len(points) <= MOST_POINTS:
        return points
    ordered, half = sorted(points, key=lambda p: -p[1]), MOST_POINTS // 2
    return ordered[:half] + ordered[half :: math.ceil((len(points) - half) / half)]


def _diagonal(gaps: list[float], put_x: Callable, put_y: Callable) -> dict[str, Any]:
    """Return the line regret = gap, in points that lie even on either kind of axis."""
    low, high = (min(gaps), max(gaps)) if gaps else (1.0, 1.0)
    spots = [low * (high / low) ** (i / 20) for i in range(21)]
    x, y = [put_x(v) for v in spots], [put_y(v) for v in spots]
    return line(x, y, "@muted", width=1, dash="dot", **SILENT)


def _about(gap: float, lost: float, row: Row) -> str:
    why = REASONS.get(str(row.get("reason")), "")
    return f"row {row.get('row')}: regret {short(lost)}, at stake {short(gap)}<br>{why}"
