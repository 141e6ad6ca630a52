"""Figures of training over its steps: invalid answers, actions, reward, and how training goes.

Runs share a figure, each in its colour, where there are curves; where areas are stacked, each run
has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_tools.report.collect import RunRecord, number
from gptoss_tools.report.heldout import last_step, run_keys
from gptoss_tools.report.parts import Key, Panel
from gptoss_tools.report.style import (
    PERCENT,
    SILENT,
    Trace,
    action_colour,
    axis,
    faint,
    layout,
    levels,
    line,
    plain,
    points,
    run_colour,
    running_mean,
    steps_axis,
    window_for,
)
from gptoss_tools.report.words import CAUSES, REASONS, percent

MULTIPLES = (
    ("entropy", "Entropy, nats per token", False),
    ("completions_mean_length", "Completion length, tokens", False),
    ("grad_norm", "Gradient norm", False),
    ("frac_reward_zero_std", "Groups without any signal", True),
    ("kl", "KL from the reference model", False),
    ("regret", "Regret in training, valid answers", False),
)
"""(name in metrics.jsonl, title, whether it is a share)"""


def invalid(record: RunRecord, place: int) -> Panel:
    """The share of sampled completions that were no action, stacked by cause."""
    name, title = f"invalid-{place}", "Invalid answers while training, by cause"
    rows = [r for r in record.metrics if number(r.get("invalid_share")) is not None]
    if not rows:
        return Panel(name, title, missing=untrained(record), run=place)
    steps, window = [r["step"] for r in rows], window_for(len(rows))
    traces = [
        _area(
            steps,
            running_mean([number(r.get(f"invalid_{cause}")) or 0.0 for r in rows], window),
            f"@cause{index}",
            f"%{{y:.1f}} % {REASONS[cause]}",
        )
        for index, cause in enumerate(CAUSES)
    ]
    top = max(sum(column) for column in zip(*(t["y"] for t in traces), strict=True))
    y_axis = {**PERCENT, "range": [0, max(5.0, 1.08 * top)], "nticks": 6}
    look = layout(240, hovermode="x unified", xaxis=steps_axis(steps[-1]), yaxis=y_axis)
    keys = [Key(REASONS[cause], f"@cause{index}") for index, cause in enumerate(CAUSES)]
    note = f"{_averaged(window)}In the last record {percent(rows[-1]['invalid_share'])}."
    return Panel(name, title, {"data": traces, "layout": look}, keys, place, note)


def actions(record: RunRecord, place: int) -> Panel:
    """The share of each action among the sampled answers, beside how often each is the best."""
    name, title = f"actions-{place}", "Actions chosen while training"
    count = record.n_actions
    rows = [r for r in record.metrics if number(r.get("action_0")) is not None]
    if not rows:
        return Panel(name, title, missing=untrained(record), run=place)
    steps, window = [r["step"] for r in rows], window_for(len(rows))
    names, colours = record.action_names(count), [action_colour(k, count) for k in range(count)]
    traces = [
        _area(
            steps,
            running_mean([number(r.get(f"action_{k}")) or 0.0 for r in rows], window),
            colours[k],
            f"%{{y:.0f}} % {plain(names[k])}",
        )
        for k in range(count)
    ]
    shares, whose = best_shares(record, count)
    look = layout(
        260,
        hovermode="x unified",
        barmode="stack",
        bargap=0,
        xaxis=steps_axis(steps[-1], domain=[0, 0.88 if shares else 1]),
        yaxis={**PERCENT, "range": [0, 100]},
    )
    note = f"{_averaged(window)}What is missing to 100 % was invalid."
    if shares:
        look["xaxis2"] = axis(domain=[0.92, 1], side="top", ticks="", showline=False)
        note += f" The column on the right is how often each action is the best one {whose}."
        traces += [
            {
                "type": "bar",
                "x": ["best"],
                "y": [100 * share],
                "xaxis": "x2",
                "marker": {"color": colours[k], "line": {"width": 0}},
                "hovertemplate": f"%{{y:.0f}} % {plain(names[k])}<extra></extra>",
            }
            for k, share in enumerate(shares)
        ]
    keys = [Key(names[k], colours[k]) for k in range(count)]
    return Panel(name, title, {"data": traces, "layout": look}, keys, place, note)


def reward(records: Sequence[RunRecord]) -> Panel:
    """Mean reward of the sampled answers, with what dice and perfection would earn."""
    traces, measured = [], False
    for place, record in enumerate(records):
        traces += _smoothed(record, place, "reward", len(records) == 1)
        steps, values = record.curve("eval_reward")
        measured = measured or bool(steps)
        marker = {"symbol": "diamond-open", "size": 8, "color": run_colour(place)}
        spots = {"x": steps, "y": values, "marker": marker, "meta": {"run": place}}
        said = {"hovertemplate": "held-out, greedy: %{y:.3~g}<extra></extra>"}
        traces.append({"type": "scatter", "mode": "markers", "cliponaxis": False, **spots, **said})
    if not any(trace["x"] for trace in traces):
        return Panel("reward", "Mean reward", missing=untrained(records[0]))
    last = last_step(records)
    worth = next((found for r in records if (found := r.found("reward"))), {})
    names = {"uniform": "uniform", "fixed": "best fixed action", "best": "best possible"}
    lines = [(v, names[n]) for n in names if (v := number(worth.get(n))) is not None]
    look = layout(300, hovermode="x unified", xaxis=steps_axis(last), **levels(lines, traces, last))
    smooth = any(window_for(len(record.metrics)) > 1 for record in records)
    note = "Pale: every record; full: a running mean." if smooth else ""
    note += " Diamonds: greedy answers to held-out rows." if measured else ""
    note += " Dotted: what the held-out tables allow." if lines else ""
    keys = run_keys(records)
    return Panel("reward", "Mean reward", {"data": traces, "layout": look}, keys, note=note.strip())


def multiples(records: Sequence[RunRecord]) -> list[Panel]:
    """One small figure for each measure of how training goes that the runs have logged."""
    panels = []
    for name, title, share in MULTIPLES:
        traces = []
        for place, record in enumerate(records):
            traces += _smoothed(record, place, name, len(records) == 1, share)
        if any(trace["x"] for trace in traces):
            y_axis = {"rangemode": "tozero", "nticks": 5, **(PERCENT if share else {})}
            x_axis = steps_axis(last_step(records), nticks=5)
            look = layout(180, hovermode="x unified", xaxis=x_axis, yaxis=y_axis)
            panels.append(Panel(f"curve-{name}", title, {"data": traces, "layout": look}))
    return panels


def best_shares(record: RunRecord, count: int) -> tuple[list[float], str]:
    """Return how often each action is the best one, and where; ([], "") if that is unknown."""
    if total := sum(record.asked.values()):
        return [record.asked.get(k, 0) / total for k in range(count)], "in training's prompts"
    shares = record.found("actions", "optimal") or []
    return [float(s) for s in shares[:count]], "in the held-out rows" if shares else ""


def untrained(record: RunRecord) -> str:
    """Say which command would fill the place of a curve."""
    return f"no steps logged yet: gptoss resume {record.path}"


def _area(steps: list[int], shares: list[float], colour: str, said: str) -> Trace:
    stacked = {"stackgroup": "all", "fillcolor": colour, "hovertemplate": said + "<extra></extra>"}
    return line(steps, points(shares), colour, width=0.5, **stacked)


def _smoothed(
    record: RunRecord, place: int, name: str, alone: bool, share: bool = False
) -> list[Trace]:
    """Return the curve as logged, pale, and its running mean; of few records, just these."""
    steps, values = record.curve(name)
    values, form = (points(values), ".1f} %") if share else (values, ".3~g}")
    colour, window, shared = run_colour(place), window_for(len(values)), {"meta": {"run": place}}
    said = f"{'' if alone else plain(record.label) + ': '}%{{y:{form}<extra></extra>"
    mean = line(steps, running_mean(values, window), colour, hovertemplate=said, **shared)
    if window == 1:
        return [mean]
    return [line(steps, values, faint(colour, 0.3), width=1, **SILENT, **shared), mean]


def _averaged(window: int) -> str:
    return f"Running mean over {window} records. " if window > 1 else ""
