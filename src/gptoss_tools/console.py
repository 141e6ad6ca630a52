"""What the user sees: results on stdout, everything else on stderr.

Modes: `human` (text), `json` (one document on stdout), `quiet` (results only), `silent` (errors
only). Bars appear only on a terminal; elsewhere a line every few steps. Commands call `out`; none
asks for the mode.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Console:
    """The verbs of output; one instance, `out`, serves the whole command line."""

    def __init__(self) -> None:
        self.mode = "human"
        self.verbose = False

    def result(self, data: Mapping[str, Any], text: str | None = None) -> None:
        """Print the command's result: `data` as JSON, or `text` (default: one line per key)."""
        if self.mode == "silent":
            return
        if self.mode == "json":
            print(json.dumps(_plain(data), ensure_ascii=False, indent=2))  # noqa: T201
            return
        lines = text if text is not None else "\n".join(f"{k}: {_show(v)}" for k, v in data.items())
        print(lines)  # noqa: T201

    def table(
        self, rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any], footer: str = ""
    ) -> None:
        """Print `rows` as an aligned table, or `data` as JSON."""
        self.result(data, align(rows) + (f"\n{footer}" if footer else ""))

    def text(self, piece: str) -> None:
        """Print a piece of a stream without a newline (nothing in JSON mode)."""
        if self.mode in ("human", "quiet"):
            sys.stdout.write(piece)
            sys.stdout.flush()

    def notice(self, message: str) -> None:
        """Say what is going on."""
        if self.mode in ("human", "json"):
            self._err(message)

    def warning(self, message: str) -> None:
        if self.mode != "silent":
            self._err(f"warning: {message}")

    def error(self, message: str, hint: str | None = None) -> None:
        self._err(f"error: {message}")
        if hint:
            self._err(f"hint: {hint}")

    def hint(self, message: str) -> None:
        """Name the next command."""
        if self.mode == "human":
            self._err(f"hint: {message}")

    @contextmanager
    def progress(self, label: str, total: int | None, every: int = 10):
        """Yield `update(done, **facts)`; a bar on a terminal, else a line every `every` steps.

        A fact named `total` replaces the total.
        """
        if self.mode in ("quiet", "silent"):
            yield lambda done, **facts: None
        elif sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            yield from self._bar(label, total)
        else:
            yield self._lines(label, total, every)

    def _bar(self, label: str, total: int | None):
        from rich.console import Console as RichConsole  # only a terminal pays for Rich
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        with Progress(*columns, console=RichConsole(stderr=True)) as bar:
            task = bar.add_task(label, total=total, facts="")

            def update(done: int, total: int | None = None, **facts: Any) -> None:
                bar.update(task, completed=done, total=total, facts=_facts(facts))

            yield update

    def _lines(self, label: str, whole: int | None, every: int):
        started = time.monotonic()
        first: int | None = None
        said = 0

        def update(done: int, total: int | None = whole, **facts: Any) -> None:
            nonlocal first, said
            first = done - 1 if first is None else first
            if done // every == said // every and done != total:
                return
            said = done
            elapsed = time.monotonic() - started
            left = ""
            if total and first < done < total:
                left = f", {_span(elapsed / (done - first) * (total - done))} left"
            count = f"{done}/{total}" if total else f"{done}"
            self._err(f"{label} {count} ({_span(elapsed)}{left}) {_facts(facts)}".rstrip())

        return update

    def _err(self, line: str) -> None:
        encoding = sys.stderr.encoding or "utf-8"
        safe = line.encode(encoding, errors="replace").decode(encoding)
        print(safe, file=sys.stderr, flush=True)  # noqa: T201


out = Console()


def align(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay `rows` out in columns: numbers to the right, text to the left."""
    if not rows:
        return "(nothing)"
    names = list(rows[0])
    cells = [[_show(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(names[i]), *(len(line[i]) for line in cells)) for i in range(len(names))]
    right = [all(isinstance(row.get(n), int | float | None) for row in rows) for n in names]

    def line(parts: Sequence[str]) -> str:
        padded = (
            part.rjust(width) if to_right else part.ljust(width)
            for part, width, to_right in zip(parts, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), line(["-" * w for w in widths]), *map(line, cells)])


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_show(v) for v in value)
    return "" if value is None else str(value)


def _facts(facts: Mapping[str, Any]) -> str:
    return "  ".join(f"{k} {_show(v)}" for k, v in facts.items() if v is not None)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _plain(value: Any) -> Any:
    """Make `value` fit JSON: paths become text, NaN becomes null, numpy numbers become numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
