"""How figures look: axes, lines, and colours by name.

Figures are plain dicts in plotly's own JSON schema. Their colours are names of page.css, written
`@name` (`@name/0.3` with an opacity, `@ramp:0.5` along a ramp of colours), which page.js replaces
by the theme's; so a figure is the same in either theme, and colours stand in one place.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

Trace = dict[str, Any]

RUN_COLOURS = 6
SILENT: dict[str, Any] = {"hoverinfo": "skip"}
PERCENT: dict[str, Any] = {"ticksuffix": " %"}


def run_colour(place: int) -> str:
    """Return the colour of the run at `place`."""
    return f"@run{place % RUN_COLOURS}"


def action_colour(action: int, count: int) -> str:
    """Return the colour of an action: a ramp whose lightness rises, so it reads without hue."""
    return f"@ramp:{action / max(count - 1, 1):.4g}"


def heat(rank: int, last: int) -> str:
    """Return the colour of a rank, from pale (0) to strong (`last`)."""
    return f"@heat:{rank / max(last, 1):.4g}"


def faint(colour: str, opacity: float) -> str:
    """Return the colour with an opacity."""
    return f"{colour}/{opacity:g}"


def plain(text: Any) -> str:
    """Return text for a figure so that plotly shows it as it is: it reads some HTML."""
    return html.escape(str(text), quote=False)


def steps_axis(last: int, **more: Any) -> dict[str, Any]:
    """Return the axis of optimizer steps, from 0 to the last one."""
    title = {"text": "step", "standoff": 4, "font": {"size": 11}}
    return {"title": title, "range": [0, max(last, 1)], **more}


def points(shares: Sequence[float]) -> list[float]:
    """Return shares in per cent."""
    return [100 * share for share in shares]


def layout(height: int, **more: Any) -> dict[str, Any]:
    """Return the layout that all figures share; `more` is merged into it."""
    base: dict[str, Any] = {
        "height": height,
        "margin": {"l": 8, "r": 18, "t": 10, "b": 8},
        "paper_bgcolor": "@none",
        "plot_bgcolor": "@none",
        "font": {"size": 12, "color": "@muted"},
        "hoverlabel": {
            "bgcolor": "@panel",
            "bordercolor": "@line",
            "font": {"size": 12, "color": "@ink"},
            "align": "left",
            "namelength": -1,
        },
        "hovermode": "closest",
        "showlegend": False,
        "dragmode": False,
        "xaxis": axis(),
        "yaxis": axis(value=True),
    }
    for name, part in more.items():
        both = isinstance(part, dict) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **part} if both else part
    return base


def axis(*, value: bool = False, **more: Any) -> dict[str, Any]:
    """Return a thin axis; a `value` axis has grid lines instead of a line and ticks."""
    return {
        "showgrid": value,
        "gridcolor": "@grid",
        "gridwidth": 1,
        "zeroline": False,
        "showline": not value,
        "linecolor": "@line",
        "linewidth": 1,
        "ticks": "" if value else "outside",
        "ticklen": 4,
        "tickcolor": "@line",
        "automargin": True,
        "ticklabeloverflow": "allow",
        "fixedrange": True,
        **more,
    }


def line(x: Sequence[Any], y: Sequence[Any], colour: str, **more: Any) -> Trace:
    """Return a line trace; `more` overrides, with `width` and `dash` for the line itself."""
    drawn = {"color": colour, "width": more.pop("width", 2), "dash": more.pop("dash", "solid")}
    if shape := more.pop("shape", None):
        drawn["shape"] = shape
    base = {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "line": drawn}
    return {**base, **more}


def band(
    x: Sequence[Any], low: Sequence[float], high: Sequence[float], colour: str, **more: Any
) -> Trace:
    """Return the area between two curves as one closed, unhoverable trace."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": faint(colour, 0.16),
        "line": {"width": 0, "color": colour},
        **SILENT,
        **more,
    }


def levels(
    lines: Sequence[tuple[float, str]], traces: Sequence[Trace] = (), last: int = 1
) -> dict[str, Any]:
    """Return `shapes` and `annotations` of a layout: dotted horizontal lines with their names.

    A name stands on its line as far to the right as it keeps clear of the curves of `traces`, whose
    x goes from 0 to `last`.
    """
    curves = [
        (x / max(last, 1), y)
        for trace in traces
        for x, y in zip(trace["x"], trace["y"], strict=True)
    ]
    heights = [y for _, y in curves] + [y for y, _ in lines]
    clear = 0.07 * (max(heights, default=1.0) - min(heights, default=0.0))
    shapes, names = [], []
    for y, text in sorted(lines, reverse=True):
        rooms = {
            place: min(
                [abs(other - y) for x, other in curves if place - 0.2 <= x <= place]
                + [abs(name["y"] - y) for name in names if name["x"] == place],
                default=math.inf,
            )
            for place in (1, 0.75, 0.5, 0.25)
        }
        place = next(
            (p for p, room in rooms.items() if room > clear), max(rooms, key=rooms.__getitem__)
        )
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": y,
                "y1": y,
                "line": {"color": "@muted", "width": 1, "dash": "dot"},
                "layer": "below",
            }
        )
        names.append(
            {
                "text": plain(text),
                "xref": "paper",
                "x": place,
                "y": y,
                "xanchor": "right",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 11, "color": "@muted"},
            }
        )
    return {"shapes": shapes, "annotations": names}


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the `window` values around each place, fewer at the ends."""
    if window <= 1:
        return list(values)
    reach, n = window // 2, len(values)
    sums = [0.0, *itertools.accumulate(values)]
    ends = ((max(0, place - reach), min(n, place + reach + 1)) for place in range(n))
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ends]


def window_for(length: int) -> int:
    """Return an odd window of about a twentieth of the points."""
    return 2 * (length // 40) + 1
