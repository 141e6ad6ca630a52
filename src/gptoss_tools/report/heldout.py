"""Figures of held-out regret: the evaluated policies side by side, and the way there over steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_tools.core.overview import best_record
from gptoss_tools.report.collect import Row, RunRecord, dig, number
from gptoss_tools.report.parts import Key, Panel
from gptoss_tools.report.style import (
    SILENT,
    STEPS,
    Trace,
    band,
    layout,
    levels,
    line,
    plain,
    run_colour,
)
from gptoss_tools.report.words import between, policy_name, short

INTERVAL = "The bar is the 95 % interval over episodes."


def policies(records: Sequence[RunRecord]) -> Panel:
    """Regret of every evaluated policy with its interval, least first."""
    found: dict[tuple[str, Any], tuple[str, int | None, Row]] = {}
    for place, record in enumerate(records):
        for row in [*(record.found("policies") or []), *_sampled(record)]:
            regret, name = number(row.get("regret")), str(row.get("name"))
            if regret is None:
                continue
            own = name == "policy" or "of" in row
            if own:
                label = record.label if name == "policy" else f"{name} of {row['of']}"
                label += f", {record.label}" if name != "policy" and len(records) > 1 else ""
                found[label, place] = (label, place, row)
            else:  # baselines that several evaluations share are shown once
                found.setdefault((name, short(regret, 6)), (policy_name(name), None, row))
    lines = sorted(found.values(), key=lambda item: item[2]["regret"])
    if not lines:
        return Panel("policies", "Held-out regret by policy")
    # Plotly merges rows of one name, so each has a number and its name is a tick label.
    ticks = list(range(len(lines)))
    traces = [_dots(y, *item) for y, item in enumerate(lines)]
    numbers = [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 8,
            "y": y,
            "text": short(row["regret"]),
            "showarrow": False,
            "font": {"size": 12, "color": "@muted" if place is None else run_colour(place)},
        }
        for y, (_, place, row) in enumerate(lines)
    ]
    look = layout(
        54 + 26 * len(lines),
        margin={"r": 56},
        annotations=numbers,
        xaxis={"rangemode": "tozero", "showgrid": True, "showline": False, "ticks": ""},
        yaxis={
            "range": [len(lines) - 0.4, -0.6],
            "showgrid": False,
            "tickvals": ticks,
            "ticktext": [plain(label) for label, _, _ in lines],
            "tickfont": {"size": 12, "color": "@ink"},
        },
    )
    note = INTERVAL
    if len({dig(r.evaluation, "data_sha256") for r in records if r.evaluation}) > 1:
        note += " The runs were evaluated on different tables: compare with care."
    return Panel(
        "policies", "Held-out regret by policy", {"data": traces, "layout": look}, note=note
    )


def over_steps(records: Sequence[RunRecord]) -> Panel:
    """Held-out regret over steps with its interval, and what policies without a model lose."""
    title, alone = "Held-out regret while training", len(records) == 1
    traces: list[Trace] = []
    for place, record in enumerate(records):
        traces += _curve(record, place, alone)
    if not traces:
        missing = "no held-out evaluation during training: gptoss train-grpo --eval-steps N"
        return Panel("held-out", title, missing=missing)
    look = layout(
        320,
        hovermode="x unified",
        xaxis=STEPS,
        yaxis={"rangemode": "tozero"},
        **levels(_without_model(records)),
    )
    note = "Greedy answers to held-out rows; the band is the 95 % interval over episodes."
    if alone:
        note += " The ring marks the best step."
    keys = run_keys(records)
    return Panel("held-out", title, {"data": traces, "layout": look}, keys, note=note)


def run_keys(records: Sequence[RunRecord]) -> list[Key]:
    """Return the legend that switches runs, nothing for one run."""
    if len(records) == 1:
        return []
    return [Key(r.label, run_colour(i), "line", f"run:{i}") for i, r in enumerate(records)]


def _dots(y: int, label: str, place: int | None, row: Row) -> Trace:
    """Return one policy's dot and interval; only a run's own greedy policy is a full dot."""
    regret, interval = row["regret"], row.get("ci95")
    colour = "@muted" if place is None else run_colour(place)
    full = row.get("name") == "policy"
    said = f"{plain(label)}: {short(regret)}"
    if bounds := between(interval):
        said += f" ({bounds})"
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [regret],
        "y": [y],
        "marker": {
            "size": 11 if full else 8,
            "color": colour if full else "@page",
            "line": {"width": 1.6, "color": colour},
        },
        "hovertemplate": f"{said}<extra></extra>",
        "meta": {"run": place},
    }
    if bounds:
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [interval[1] - regret],
            "arrayminus": [regret - interval[0]],
            "color": colour,
            "thickness": 2 if full else 1.2,
            "width": 0,
        }
    return trace


def _sampled(record: RunRecord) -> list[Row]:
    """Return what several drawn answers per row give, as rows like those of `policies`."""
    sampled = record.found("sampled") or {}
    n, rows = sampled.get("n"), []
    if isinstance(single := dig(sampled, "regret"), dict):
        rows.append({"name": "one draw", "regret": single.get("mean"), "ci95": single.get("ci95")})
    for name in ("majority", "best_of"):
        if isinstance(part := sampled.get(name), dict):
            shown = {"majority": "majority", "best_of": "best"}[name]
            rows.append({"name": shown, "regret": part.get("regret"), "ci95": part.get("ci95")})
    return [{**row, "of": n} for row in rows]


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
        "marker": {"size": 6, "color": colour},
        "customdata": [f" ({text})" if (text := between(b)) else "" for b in bounds],
        "hovertemplate": name + "%{y:.3~g}%{customdata}<extra></extra>",
    }
    traces.append(curve)
    best = best_record(rows)
    if alone and best is not None:
        ring = {"size": 13, "color": "@none", "line": {"width": 2, "color": "@ink"}}
        spot = {"x": [best["step"]], "y": [best["eval_regret"]], "marker": ring}
        traces.append({"type": "scatter", "mode": "markers", **spot, **SILENT, **shared})
    return traces


def _without_model(records: Sequence[RunRecord]) -> list[tuple[float, str]]:
    """Return levels for the chart over steps, from an evaluation of the same tables."""
    for record in records:
        if record.evaluation is None or record.found("data") != record.settings.get("eval_data"):
            continue
        names = ("uniform", "fixed", "base")
        known = [(number(record.found("regret", name)), policy_name(name)) for name in names]
        return [(value, name) for value, name in known if value is not None]
    return []
