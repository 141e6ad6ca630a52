"""Figures of the held-out decisions as a whole: which instead of which, at what stake, how sure."""

from __future__ import annotations

import math

from gptoss_tools.report.collect import Row, RunRecord, number, value_of
from gptoss_tools.report.parts import Key, Panel
from gptoss_tools.report.scales import Scale, value_scale
from gptoss_tools.report.style import (
    PERCENT,
    SILENT,
    Trace,
    layout,
    line,
    plain,
    points,
    run_colour,
)
from gptoss_tools.report.words import REASONS, percent, short

MOST_POINTS = 3000  # points that any browser draws at once
SPREAD = 100.0  # values that span more get logarithmic axes
INVALID = "@invalid"


def confusion(record: RunRecord, place: int) -> Panel:
    """Best action by chosen action: counts, shaded by their share of the row."""
    name, title = f"confusion-{place}", "Best action against chosen"
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
    note = "Rows: the best action and how often it was found; columns: the chosen one."
    return Panel(name, title, {"data": [heat], "layout": look}, run=place, note=note)


def stakes(record: RunRecord, place: int) -> Panel:
    """Regret against the gap between the best and the second-best action."""
    name, title = f"stakes-{place}", "Regret by what was at stake"
    points = [point for row in record.decisions if (point := _stake(row)) is not None]
    if not points:
        return Panel(name, title, missing=unevaluated(record), run=place)
    shown = _thinned(points)
    gaps, losses = [gap for gap, _, _ in points], [lost for _, lost, _ in points]
    # Both axes are of one kind, so that the diagonal is straight.
    wide = any(value_scale(values, SPREAD).logarithmic for values in (gaps, losses))
    across, up = (value_scale(values, 1.0 if wide else math.inf) for values in (gaps, losses))
    traces = [_diagonal(max(gaps), across, up)]
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
                "x": [across.put(gap) for gap, _, _ in part],
                "y": [up.put(lost) for _, lost, _ in part],
                "marker": {"size": 7, **look},
                "text": [_about(*point) for point in part],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    x_title = {"text": "best minus second best, in the unit of Q", "font": {"size": 11}}
    look = layout(
        340, xaxis={**across.axis, "title": {**x_title, "font": {"size": 11}}}, yaxis=up.axis
    )
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
        "x": points([b["confidence"] for b in bins]),
        "y": points([b["correct"] for b in bins]),
        "line": {"color": colour, "width": 1},
        "marker": {
            "size": [7 + 17 * math.sqrt(b["n"] / largest) for b in bins],
            "color": colour,
            "opacity": 0.75,
            "line": {"width": 0},
        },
        "customdata": [b["n"] for b in bins],
        "hovertemplate": "votes %{x:.0f} %, right %{y:.0f} %, %{customdata} rows<extra></extra>",
    }
    even = line([0, 100], [0, 100], "@muted", width=1, dash="dot", **SILENT)
    share_axis = {**PERCENT, "range": [0, 105]}
    x_title = {"text": "share of votes", "standoff": 6, "font": {"size": 11}}
    look = layout(340, xaxis={**share_axis, "title": x_title}, yaxis=share_axis)
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


def _diagonal(high: float, across: Scale, up: Scale) -> Trace:
    """Return the line regret = gap."""
    low = max(across.low, up.low)
    ends = [low, high] if high > low else []
    return line(ends, ends, "@muted", width=1, dash="dot", **SILENT)


def _about(gap: float, lost: float, row: Row) -> str:
    why = REASONS.get(str(row.get("reason")), "")
    return f"row {row.get('row')}: regret {short(lost)}, at stake {short(gap)}<br>{why}"
