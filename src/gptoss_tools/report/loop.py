"""The closed-loop strip: every policy's stored energy, load, output and carbon on one time axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from gptoss_tools.report.collect import Row, RunRecord, number
from gptoss_tools.report.maps import moment_of
from gptoss_tools.report.parts import Figure, Key, Panel, Table
from gptoss_tools.report.style import Trace, axis, layout, line, plain, run_colour
from gptoss_tools.report.words import DASH, between, percent, policy_name, short

OWN, OPTIMUM, BASE = "policy", "optimal", "base"
ROWS = (
    ("stored energy, kWh", (0.55, 0.96)),
    ("load (grey) and output, kW", (0.25, 0.46)),
    ("carbon, kg per kWh", (0.0, 0.16)),
)
MOST_SERIES = 24  # figures behind one chooser; each costs the page about 40 kB
COLUMNS = (
    *("policy", "kgCO2", "above optimum", "emitted kg", "unmet kWh"),
    *("left kWh", "loss", "invalid"),
)
OTHERS = ("@cause0", "@cause1", "@cause2", "@cause3", "@run4", "@run5")

Hours = dict[str, list[Row]]
"""policy -> its hours, in order of t."""


def strip(records: Sequence[RunRecord]) -> Panel | None:
    """One figure per series behind a chooser; None if no run was driven in closed loop.

    Runs that drove the same series (name and load) share its figure; what is no run's own policy
    is taken from the first of them.
    """
    series: dict[tuple[str, tuple], dict[int, Hours]] = defaultdict(dict)
    for place, record in enumerate(records):
        for name, hours in _by_series(record.closed_loop).items():
            first = next(iter(hours.values()))
            series[name, tuple(row.get("load_kw") for row in first)][place] = hours
    if not series:
        return None
    others = sorted(
        {p for runs in series.values() for h in runs.values() for p in h} - {OWN, OPTIMUM, BASE}
    )
    shown = list(series.items())[:MOST_SERIES]
    choices = [(name, _figure(runs, records, others)) for (name, _), runs in shown]
    keys = [
        Key(r.label, run_colour(i), "line", f"run:{i}")
        for i, r in enumerate(records)
        if r.closed_loop
    ]
    keys += [
        Key("optimum", "@ink", "dashed", OPTIMUM),
        Key("base", "@muted", "line", BASE),
        *(Key(policy_name(p), _other(others, p), "line", p, off=True) for p in others),
    ]
    present = {p for runs in series.values() for hours in runs.values() for p in hours}
    keys = [key for key in keys if key.group in present or (key.group or "").startswith("run:")]
    note = "Red marks are hours with unmet load. Pale entries of the legend can be switched on."
    if len(series) > len(shown):
        note += f" {len(shown)} of {len(series)} series are here, all in closed_loop.jsonl."
    return Panel(
        "loop", "Stored energy, output and carbon", choices[0][1], keys, note=note, choices=choices
    )


def summary(records: Sequence[RunRecord]) -> Table | None:
    """What each policy emitted and missed, mean over series, least cost first; None without any.

    What several runs share comes once.
    """
    found: dict[tuple[str, Any], tuple[str, Row, float | None]] = {}
    for place, record in enumerate(records):
        rows = record.found("closed_loop", "policies") or []
        kg = {row.get("name"): number(row.get("kg_co2")) for row in rows}
        for row in rows:
            name = str(row.get("name"))
            label = record.label if name == OWN else policy_name(name)
            key = place if name == OWN else short(kg[row.get("name")], 6)
            found.setdefault((name, key), (label, row, kg.get(OPTIMUM)))
    if not found:
        return None
    rows = sorted(found.values(), key=lambda item: _or_last(number(item[1].get("cost_kg"))))
    own = frozenset(i for i, (_, row, _) in enumerate(rows) if row.get("name") == OWN)
    numbers = {r.found("closed_loop", "n_series") for r in records} - {None}
    title = f"Mean over {' or '.join(map(str, sorted(numbers)))} series"
    return Table(COLUMNS, [_summed(*row) for row in rows], title, marked=own)


def _summed(label: str, row: Row, best: float | None) -> list[str]:
    kg, loss = number(row.get("kg_co2")), short(number(row.get("loss")))
    return [
        label,
        short(kg),
        _above(kg, best),
        *(short(number(row.get(name))) for name in ("emitted_kg", "unmet_kwh", "final_kwh")),
        f"{loss}\n{between(row.get('ci95'))}".strip(),
        percent(number(row.get("invalid"))),
    ]


def _by_series(rows: Sequence[Row]) -> dict[str, Hours]:
    found: dict[str, Hours] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[str(row.get("series"))][str(row.get("policy"))].append(row)
    for hours in found.values():
        for own in hours.values():
            own.sort(key=lambda row: row.get("t") or 0)
    return found


def _figure(runs: dict[int, Hours], records: Sequence[RunRecord], others: list[str]) -> Figure:
    shared = next(iter(runs.values()))
    x = _times(next(iter(shared.values())))
    first = next(iter(shared.values()))
    load = line(x, _column(first, "load_kw", 1), "@none", shape="hv", width=0)
    load |= {
        "yaxis": "y2",
        "fill": "tozeroy",
        "fillcolor": "@load",
        "hovertemplate": "load %{y:.3~g} kW<extra></extra>",
    }
    carbon = line(x, _column(first, "carbon", 1), "@ink", shape="hv", width=1.2)
    carbon |= {"yaxis": "y3", "hovertemplate": "carbon %{y:.3~g} kg/kWh<extra></extra>"}
    traces = [load, carbon]
    for name in others:
        if name in shared:
            traces += _policy(
                shared[name], policy_name(name), _other(others, name), {"group": name}, 1.2
            )
    if BASE in shared:
        traces += _policy(shared[BASE], "base", "@muted", {"group": BASE}, 1.5)
    if OPTIMUM in shared:
        traces += _policy(shared[OPTIMUM], "optimum", "@ink", {"group": OPTIMUM}, 1.5, "dot")
    for place, hours in runs.items():
        if OWN in hours:
            traces += _policy(
                hours[OWN], records[place].label, run_colour(place), {"run": place}, 2.2
            )
    titles = [
        {
            "text": text,
            "xref": "paper",
            "yref": "paper",
            "x": 0,
            "y": domain[1],
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 11},
        }
        for text, domain in ROWS
    ]
    axes = {
        f"yaxis{number}": axis(
            value=True, domain=list(domain), rangemode="tozero", nticks=5 if number == "" else 4
        )
        for number, (_, domain) in zip(("", 2, 3), ROWS, strict=True)
    }
    look = layout(
        460,
        hovermode="x unified",
        annotations=titles,
        xaxis={
            "anchor": "y3",
            "tickformat": "%H h\n%-d %b",
            "showspikes": True,
            "spikethickness": 1,
            "spikecolor": "@line",
            "spikedash": "solid",
            "spikemode": "across",
        },
        hoversubplots="axis",
        **axes,
    )
    return {"data": traces, "layout": look}


def _policy(
    hours: list[Row], label: str, colour: str, meta: Row, width: float, dash: str = "solid"
) -> list[Trace]:
    """Return a policy's stored energy, its output, and where load stayed unmet."""
    x, said = _times(hours), plain(label)
    held = [number(row.get("soc")) for row in hours] + [number(hours[-1].get("soc_after"))]
    stored = line(x, held, colour, width=width, dash=dash, meta=meta)
    stored["hovertemplate"] = f"{said} %{{y:.0f}} kWh<extra></extra>"
    made = line(
        x, _column(hours, "output_kw", 1), colour, width=width, dash=dash, shape="hv", meta=meta
    )
    made |= {"yaxis": "y2", "hovertemplate": f"{said} %{{y:.0f}} kW<extra></extra>"}
    short_of = [
        (x[i], row) for i, row in enumerate(hours) if (number(row.get("unmet_kwh")) or 0) > 1e-9
    ]
    unmet = {
        "type": "scatter",
        "mode": "markers",
        "x": [moment for moment, _ in short_of],
        "y": [0 for _ in short_of],
        "marker": {"symbol": "triangle-up", "size": 9, "color": "@invalid"},
        "customdata": [row["unmet_kwh"] for _, row in short_of],
        "hovertemplate": f"{said}: %{{customdata:.3~g}} kWh unmet<extra></extra>",
        "meta": meta,
    }
    return [stored, made, *([unmet] if short_of else [])]


def _column(hours: list[Row], name: str, repeat: int) -> list[float | None]:
    """Return a column whose last value is repeated, so that the last hour has its width too."""
    values = [number(row.get(name)) for row in hours]
    return values + values[-1:] * repeat


def _times(hours: list[Row]) -> list[Any]:
    """Return the beginning of each hour and the end of the last; numbers without timestamps."""
    moments = [moment_of(row.get("timestamp")) for row in hours]
    known = [moment for moment in moments if moment is not None]
    if len(known) < len(moments):
        return list(range(len(hours) + 1))
    return [m.isoformat() for m in [*known, known[-1] + timedelta(hours=1)]]


def _other(others: list[str], name: str) -> str:
    return OTHERS[others.index(name) % len(OTHERS)]


def _above(value: float | None, best: float | None) -> str:
    if value is None or not best or value == best:
        return DASH
    return f"{'+' if value > best else ''}{percent(value / best - 1)}"


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value
