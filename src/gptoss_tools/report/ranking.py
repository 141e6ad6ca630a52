"""The figure of all evaluated policies side by side: held-out regret with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gptoss_tools.report.collect import Row, RunRecord, dig, number
from gptoss_tools.report.parts import Panel
from gptoss_tools.report.scales import Scale, value_scale
from gptoss_tools.report.style import Trace, layout, plain, run_colour
from gptoss_tools.report.words import between, policy_name, short


class Ranked(NamedTuple):
    """One policy: its name for people, its regret, the interval or None, the run it belongs to.

    `greedy` is what the headline speaks of; `run` is None for what needs no run's adapter.
    """

    label: str
    regret: float
    interval: list[float] | None
    run: int | None
    greedy: bool


def policies(records: Sequence[RunRecord]) -> Panel | None:
    """Regret of every evaluated policy with its interval, least first; None without evaluation."""
    ranked = ranking(records)
    if not ranked:
        return None
    bounds = [value for policy in ranked for value in policy.interval or ()]
    scale = value_scale([*(policy.regret for policy in ranked), *bounds])
    numbers = [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 8,
            "y": y,
            "text": short(policy.regret),
            "showarrow": False,
            "font": {"size": 12, "color": _colour(policy)},
        }
        for y, policy in enumerate(ranked)
    ]
    look = layout(
        54 + 26 * len(ranked),
        margin={"r": 72},
        annotations=numbers,
        xaxis={**scale.axis, "nticks": 7},
        yaxis={
            "range": [len(ranked) - 0.4, -0.6],
            "showgrid": False,
            # Plotly merges lines of one name, so lines are numbered and names are ticks.
            "tickvals": list(range(len(ranked))),
            "ticktext": [plain(policy.label) for policy in ranked],
            "tickfont": {"size": 12, "color": "@ink"},
            "ticklabelstandoff": 8,
        },
    )
    traces = [_dot(y, policy, scale) for y, policy in enumerate(ranked)]
    note = "Bars are 95 % intervals over episodes."
    note += " The scale is logarithmic." if scale.logarithmic else ""
    if len({dig(r.evaluation, "data_sha256") for r in records if r.evaluation}) > 1:
        note += " The runs were evaluated on different tables: compare with care."
    return Panel("policies", "By policy", {"data": traces, "layout": look}, note=note)


def ranking(records: Sequence[RunRecord]) -> list[Ranked]:
    """Return all policies of all evaluations by regret; what they share comes once."""
    found: dict[tuple[str, Any], Ranked] = {}
    for place, record in enumerate(records):
        for row in record.found("policies") or []:
            regret, name = number(row.get("regret")), str(row.get("name"))
            if regret is None:
                continue
            interval = row.get("ci95") if between(row.get("ci95")) else None
            if name == "policy":
                found[name, place] = Ranked(record.label, regret, interval, place, True)
            else:
                other = Ranked(policy_name(name), regret, interval, None, False)
                found.setdefault((name, short(regret, 6)), other)
        suffix = f", {record.label}" if len(records) > 1 else ""
        for label, regret, interval in _sampled(record.found("sampled") or {}):
            found[label, place] = Ranked(label + suffix, regret, interval, place, False)
    return sorted(found.values(), key=lambda policy: policy.regret)


def _sampled(sampled: Row) -> list[tuple[str, float, list[float] | None]]:
    """Return (label, regret, interval) of what several drawn answers per row give."""
    single, n = sampled.get("regret"), sampled.get("n")
    parts = {
        f"one draw of {n}": (dig(single, "mean"), dig(single, "ci95")),
        f"majority of {n}": (dig(sampled, "majority", "regret"), dig(sampled, "majority", "ci95")),
        f"best of {n}": (dig(sampled, "best_of", "regret"), dig(sampled, "best_of", "ci95")),
    }
    return [
        (label, value, interval if between(interval) else None)
        for label, (found, interval) in parts.items()
        if (value := number(found)) is not None
    ]


def _dot(y: int, policy: Ranked, scale: Scale) -> Trace:
    """Return a policy's dot and interval; only a run's own greedy policy is a full dot."""
    colour, x = _colour(policy), scale.put(policy.regret)
    said = f"{plain(policy.label)}: {short(policy.regret)}"
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [x],
        "y": [y],
        "cliponaxis": False,
        "marker": {
            "size": 11 if policy.greedy else 8,
            "color": colour if policy.greedy else "@page",
            "line": {"width": 1.6, "color": colour},
        },
        "hovertemplate": f"{said}<extra></extra>",
        "meta": {"run": policy.run},
    }
    if policy.interval is not None:
        low, high = map(scale.put, policy.interval)
        trace["hovertemplate"] = f"{said} ({between(policy.interval)})<extra></extra>"
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - x],
            "arrayminus": [x - low],
            "color": colour,
            "thickness": 2 if policy.greedy else 1.2,
            "width": 0,
        }
    return trace


def _colour(policy: Ranked) -> str:
    return "@muted" if policy.run is None else run_colour(policy.run)
