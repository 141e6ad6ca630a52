"""How numbers and names read in a report."""

from __future__ import annotations

import math
from typing import Any

MINUS, DASH, INFINITY, THIN = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{INFINITY}", "\N{THIN SPACE}"

CAUSES = ("no_final", "truncated", "unparsable", "out_of_range")
REASONS = {
    "ok": "answered",
    "no_final": "no final channel",
    "truncated": "truncated",
    "unparsable": "not readable",
    "out_of_range": "no such action",
}
POLICIES = {
    "best": "optimum",
    "optimal": "optimum",
    "base": "base",
    "fixed": "best fixed action",
    "uniform": "uniform",
}


def short(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, whole from 100 on, plain from 0.0001 on."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return INFINITY if value > 0 else MINUS + INFINITY
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    size = math.floor(math.log10(abs(rounded)))  # of 99.96 as it will read: 100
    if size < -4:
        text = f"{value:.{digits - 1}g}"
    elif size < digits:
        text = f"{rounded:.{max(0, digits - 1 - size)}f}"
    else:
        text = f"{value:,.0f}"
    return text.replace(",", THIN).replace("-", MINUS)


def percent(value: float | None) -> str:
    """Return a share in per cent, with one decimal below ten."""
    if value is None:
        return DASH
    points = 100 * value
    text = f"{points:.0f} %" if points == 0 or abs(points) >= 9.95 else f"{points:.1f} %"
    return text.replace("-", MINUS)


def between(interval: Any, digits: int = 3) -> str:
    """Return an interval as `0.1 to 0.2`, nothing without one."""
    if not isinstance(interval, list | tuple) or len(interval) != 2 or None in interval:
        return ""
    return f"{short(interval[0], digits)} to {short(interval[1], digits)}"


def whole(value: Any) -> str:
    """Return a count."""
    return f"{value:,}".replace(",", THIN) if isinstance(value, int) else DASH


def count_of(n: int, thing: str) -> str:
    """Return `1 decision`, `2 decisions`."""
    return f"{whole(n)} {thing}{'' if n == 1 else 's'}"


def policy_name(name: str) -> str:
    """Return what a report calls a policy of evaluation.json or closed_loop.jsonl."""
    return POLICIES.get(name, name.replace("_", " "))
