"""How figures look: axes, lines, and colours by name.

Figures are plain dicts in plotly's own JSON schema. Their colours are names of page.css, written
`@name` (`@name/0.3` with an opacity, `@ramp:0.5` along the ramp of actions), which page.js replaces
by the theme's; so a figure is the same in either theme, and colours stand in one place.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

Trace = dict[str, Any]

RUN_COLOURS = 6
SILENT: dict[str, Any] = {"hoverinfo": "skip"}
STEPS: dict[str, Any] = {
    "title": {"text": "step", "standoff": 4, "font": {"size": 11}},
    "rangemode": "tozero",
}


def run_colour(place: int) -> str:
    """Return the colour of the run at `place`."""
    return f"@run{place % RUN_COLOURS}"


def action_colour(action: int, count: int) -> str:
    """Return the colour of an action: a ramp whose lightness rises, so it reads without hue."""
    return f"@ramp:{action / max(count - 1, 1):.4g}"


def faint(colour: str, opacity: float) -> str:
    """Return the colour with an opacity."""
    return f"{colour}/{opacity:g}"


def plain(text: Any) -> str:
    """Return text for a figure so that plotly shows it as it is: it reads some HTML."""
    return html.escape(str(text), quote=False)


def layout(height: int, **more: Any) -> dict[str, Any]:
    """Return the layout that all figures share; `more` is merged into it."""
    base: dict[str, Any] = {
        "height": height,
        "margin": {"l": 8, "r": 10, "t": 10, "b": 8},
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


def level(y: float, text: str, place: int = 0, *, colour: str = "@muted") -> tuple[dict, dict]:
    """Return (shape, annotation) of a horizontal line with its label on it.

    `place` 0, 1, 2 puts the label to the right, the middle, the left, so that near lines keep
    theirs apart.
    """
    side = ("right", "center", "left")[place % 3]
    shape = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"color": colour, "width": 1, "dash": "dot"},
        "layer": "below",
    }
    label = {
        "text": plain(text),
        "xref": "paper",
        "x": {"right": 1, "center": 0.5, "left": 0}[side],
        "y": y,
        "xanchor": side,
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11, "color": colour},
    }
    return shape, label


def levels(lines: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """Return the layout's `shapes` and `annotations` for labelled horizontal lines."""
    drawn = [level(y, text, place) for place, (y, text) in enumerate(sorted(lines, reverse=True))]
    return {"shapes": [shape for shape, _ in drawn], "annotations": [label for _, label in drawn]}


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the `window` values around each place, fewer at the ends."""
    reach, out = max(window, 1) // 2, []
    for place in range(len(values)):
        part = values[max(0, place - reach) : place + reach + 1]
        out.append(sum(part) / len(part))
    return out


def window_for(length: int) -> int:
    """Return an odd window of about a twentieth of the points."""
    return 2 * (length // 40) + 1
