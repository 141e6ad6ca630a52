"""What a session shows, and the only place where this room shows anything.

In a notebook: sentences, a live table and a plot while a run trains. In a script: lines on stderr,
results on stdout. Quiet: nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gptoss_tools.console import Console
from gptoss_tools.training.tracking import Progress

OnStep = Callable[[Progress], None]
ROWS = 8


class Display:
    """Lines, as the command line writes them; `quiet` shows nothing at all."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console()
        self.console.mode = "silent" if quiet else "human"

    def notice(self, message: str) -> None:
        """Say what is going on."""
        self.console.notice(message)

    def result(self, text: str) -> None:
        """Show what somebody asked for."""
        self.console.result({}, text)

    @contextlib.contextmanager
    def training(self, max_steps: int) -> Iterator[OnStep]:
        """Yield a listener that shows a run's progress."""
        with self.console.progress("step", max_steps) as update:
            yield lambda step: update(step.step, total=step.max_steps, **step.facts())

    @contextlib.contextmanager
    def building(self, label: str) -> Iterator[Callable[[int, int, float], None]]:
        """Yield a listener for (step, steps, loss) of a model that is being built."""
        with self.console.progress(label, None, every=100) as update:
            yield lambda step, steps, loss: update(step, total=steps, loss=loss)


class Cells(Display):
    """The output of notebook cells; what changes is replaced where it stands."""

    def notice(self, message: str) -> None:
        """Say what is going on."""
        self.result(message)

    def result(self, text: str) -> None:
        """Show what somebody asked for."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def training(self, max_steps: int) -> Iterator[OnStep]:
        """Yield a listener that redraws table and plot, at most twice a second."""
        steps: list[Progress] = []
        places: list[Any] = []
        drawn = 0.0

        def draw() -> None:
            bundles = [_table(steps, max_steps), _plot(steps)]
            if not places:
                places.extend(_place(bundle) for bundle in bundles)
            else:
                for place, bundle in zip(places, bundles, strict=True):
                    place.update(bundle, raw=True)

        def on_step(step: Progress) -> None:
            nonlocal drawn
            steps.append(step)
            if time.monotonic() - drawn > 0.5:
                draw()
                drawn = time.monotonic()

        try:
            yield on_step
        finally:
            if steps:
                draw()

    @contextlib.contextmanager
    def building(self, label: str) -> Iterator[Callable[[int, int, float], None]]:
        """Say once that a model is being built."""
        said: list[str] = []

        def on_step(step: int, steps: int, loss: float) -> None:
            if not said:
                said.append(label)
                self.notice(label)

        yield on_step


def display_for(quiet: bool = False) -> Display:
    """Return what fits where this runs."""
    return Cells() if not quiet and _in_notebook() else Display(quiet)


def _in_notebook() -> bool:
    """Whether cells of a kernel are what runs; IPython is not imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def _place(bundle: dict[str, Any]) -> Any:
    from IPython.display import display

    return display(bundle, raw=True, display_id=True)


def _table(steps: list[Progress], max_steps: int) -> dict[str, Any]:
    """The last steps as a table, for any front end."""
    from rich.table import Table

    shown = steps[-ROWS:]
    rows = [{"step": f"{s.step}/{max_steps}", **s.facts(), "left": _span(s.eta)} for s in shown]
    names = [n for n in rows[-1] if any(row[n] is not None for row in rows)]
    table = Table(*names)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    return table._repr_mimebundle_([], [])


def _plot(steps: list[Progress]) -> dict[str, Any]:
    """Reward, and regret where it is measured, by step: for front ends that know Plotly or HTML."""
    import plotly.graph_objects as go

    figure = go.Figure(layout={"height": 280, "margin": {"t": 24, "b": 40, "l": 60, "r": 20}})
    for name in ("reward", "regret", "loss"):
        known = [(s.step, v) for s in steps if (v := getattr(s, name)) is not None]
        if known:
            x, y = zip(*known, strict=True)
            hidden = "legendonly" if name == "loss" else True
            figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", visible=hidden)
    figure.update_xaxes(title="step")
    return {
        "application/vnd.plotly.v1+json": json.loads(figure.to_json() or "{}"),
        "text/html": figure.to_html(full_html=False, include_plotlyjs="cdn"),
        "text/plain": "(a plot of reward by step)",
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _span(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.0f} s"
