"""What a page is made of: sections, their panels and tables, and a panel's legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Figure = dict[str, Any]
"""{"data": traces, "layout": ...} in plotly's schema, colours as `style` writes them."""


@dataclass(frozen=True)
class Key:
    """One entry of a legend.

    `group` names the traces (their `meta.group`) that it switches, `run:0` those of a run on the
    whole page; `off` ones begin hidden.
    """

    label: str
    colour: str
    swatch: Literal["area", "line", "dashed", "point"] = "area"
    group: str | None = None
    off: bool = False


@dataclass(frozen=True)
class Panel:
    """One figure with its title and legend; `run` is the run that it shows alone, None for all.

    Without a figure, `missing` says why. `choices` are (label, figure) pairs behind a chooser; the
    first of them is `figure`.
    """

    id: str
    title: str
    figure: Figure | None = None
    keys: Sequence[Key] = ()
    run: int | None = None
    note: str = ""
    missing: str = ""
    choices: Sequence[tuple[str, Figure]] = ()


@dataclass(frozen=True)
class Table:
    """A small table: cells are texts, the first column names the row; `marked` rows stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    run: int | None = None
    marked: frozenset[int] = frozenset()
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on what it shows, panels in up to `columns` columns, then tables."""

    id: str
    title: str
    lead: str = ""
    panels: Sequence[Panel] = ()
    columns: int = 1
    tables: Sequence[Table] = ()
    missing: Sequence[str] = ()
