"""What the export benchmark makes of its measurements: medians, extrapolations, a table."""

from __future__ import annotations

import statistics
from typing import Any


def line(points: list[tuple[int, float]], at: int) -> float:
    """The value at `at` of the line through two points."""
    (x0, y0), (x1, y1) = points
    return y0 + (at - x0) * (y1 - y0) / (x1 - x0)


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per (what, sources): median seconds, largest memory, speed beside `cp`."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["sources"]), []).append(row)
    found = []
    for group in groups.values():
        seconds = statistics.median(row["seconds"] for row in group)
        peaks = {key: max(row[key] for row in group) for key in ("peak_rss", "peak_anonymous")}
        own = [row["own_seconds"] for row in group if row["own_seconds"] is not None]
        facts = {"seconds": seconds, "own_seconds": statistics.median(own) if own else None}
        facts |= {"rate": group[0]["bytes"] / seconds, "rounds": len(group)}
        found.append(group[0] | peaks | facts)
    speed = {row["sources"]: row["rate"] for row in found if row["what"] == "cp"}
    for row in found:
        row["of_cp"] = row["rate"] / speed[row["sources"]]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| what | sources | rounds | seconds | without start | MB written | MB/s | of cp's speed "
        "| peak RSS |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        about = "about " if row["extrapolated"] else ""
        own = "" if row["own_seconds"] is None else f"{row['own_seconds']:.1f}"
        rounds = "extrapolated" if row["extrapolated"] else row["rounds"]
        lines.append(
            f"| {row['what']} | {row['sources']} | {rounds} | {about}{row['seconds']:.1f} | {own} "
            f"| {row['bytes'] / 1e6:,.1f} | {row['rate'] / 1e6:.0f} | {row['of_cp']:.2f} "
            f"| {about}{row['peak_rss'] / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)
