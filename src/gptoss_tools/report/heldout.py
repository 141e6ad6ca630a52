"""The figure of held-out regret over steps, for one run or several."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_tools.core.overview import best_record
from gptoss_tools.report.collect import RunRecord, number
from gptoss_tools.report.parts import Key, Panel
from gptoss_tools.report.style import (
    SILENT,
    Trace,
    band,
    layout,
    levels,
    line,
    plain,
    run_colour,
    steps_axis,
)
from gptoss_tools.report.words import between, policy_name, short

FAR = 3.0  # a level this many times above the curves would squeeze them: it is named instead


def over_steps(records: Sequence[RunRecord]) -> Panel:
    """Held-out regret over steps with its interval, and what policies without a model lose."""
    title, alone = "While training", len(records) == 1
    traces: list[Trace] = []
    for place, record in enumerate(records):
        traces += _curve(record, place, alone)
    if not traces:
        missing = "no held-out evaluation during training: gptoss train-grpo --eval-steps N"
        return Panel("held-out", title, missing=missing)
    lines = _without_model(records)
    drawn = [y for trace in traces for y in trace["y"]]
    limit = _reach(drawn, [value for value, _ in lines])
    look = layout(
        320,
        hovermode="x unified",
        xaxis=steps_axis(last_step(records)),
        yaxis={"range": [0, limit]},
        **levels([line for line in lines if line[0] <= limit], traces, last_step(records)),
    )
    note = "Greedy answers to held-out rows; the band is the 95 % interval over episodes."
    if alone:
        note += " The ring marks the best step."
    if far := [f"{name} {short(value)}" for value, name in lines if value > limit]:
        note += f" Far above the chart: {', '.join(far)}."
    keys = run_keys(records)
    return Panel("held-out", title, {"data": traces, "layout": look}, keys, note=note)


def run_keys(records: Sequence[RunRecord]) -> list[Key]:
    """Return the legend that switches runs, nothing for one run."""
    if len(records) == 1:
        return []
    return [Key(r.label, run_colour(i), "line", f"run:{i}") for i, r in enumerate(records)]


def last_step(records: Sequence[RunRecord]) -> int:
    """Return the last step that any run has logged."""
    return max((record.metrics[-1]["step"] for record in records if record.metrics), default=0)


def _reach(inside: Sequence[float], others: Sequence[float]) -> float:
    """Return where an axis ends: it holds all `inside`, and of `others` those that are not far."""
    top = max(inside, default=0.0)
    for value in sorted(others):
        if not top or value <= FAR * top:
            top = max(top, value)
    return 1.06 * (top or 1.0)


def _curve(record: RunRecord, place: int, alone: bool) -> list[Trace]:
    rows = [r for r in record.metrics if number(r.get("eval_regret")) is not None]
    if not rows:
        return []
    colour, shared = run_colour(place), {"meta": {"run": place}}
    bounds = [[number(r.get("eval_regret_low")), number(r.get("eval_regret_high"))] for r in rows]
    known = [(r["step"], *b) for r, b in zip(rows, bounds, strict=True) if None not in b]
    traces: list[Trace] = []
    if known:
        steps, low, high = map(list, zip(*known, strict=True))
        traces.append(band(steps, low, high, colour, **shared))
    name = "" if alone else f"{plain(record.label)}: "
    curve = line([r["step"] for r in rows], [r["eval_regret"] for r in rows], colour, **shared)
    curve |= {
        "mode": "lines+markers",
        "cliponaxis": False,
        "marker": {"size": 6, "color": colour},
        "customdata": [f" ({text})" if (text := between(b)) else "" for b in bounds],
        "hovertemplate": name + "%{y:.3~g}%{customdata}<extra></extra>",
    }
    traces.append(curve)
    best = best_record(rows)
    if alone and best is not None:
        ring = {"size": 13, "color": "@none", "line": {"width": 2, "color": "@ink"}}
        spot = {"x": [best["step"]], "y": [best["eval_regret"]], "marker": ring}
        look = {"type": "scatter", "mode": "markers", "cliponaxis": False}
        traces.append({**look, **spot, **SILENT, **shared})
    return traces


def _without_model(records: Sequence[RunRecord]) -> list[tuple[float, str]]:
    """Return levels for the chart over steps, from an evaluation of the same tables.

    Of several runs each has its own base, where its curve begins.
    """
    for record in records:
        if record.evaluation is None or record.found("data") != record.settings.get("eval_data"):
            continue
        names = ("uniform", "fixed") if len(records) > 1 else ("uniform", "fixed", "base")
        known = [(number(record.found("regret", name)), policy_name(name)) for name in names]
        return [(value, name) for value, name in known if value is not None]
    return []
