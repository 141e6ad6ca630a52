"""What became of every row of a dataset: nothing is left out in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gptoss_tools.errors import DataError


@dataclass
class Dropped:
    """Rows left out for one reason, and the first of them."""

    reason: str
    rows: int
    first: str
    detail: str


@dataclass
class SourceRows:
    """Rows of one file or dataset."""

    source: str
    format: str
    read: int = 0
    kept: int = 0


@dataclass
class Report:
    """Counts of a whole preparation; `columns_left_out` hold what no table cell can."""

    sources: list[SourceRows] = field(default_factory=list)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    beyond_max_examples: int = 0
    train: int = 0
    test: int = 0
    columns_left_out: Counter[str] = field(default_factory=Counter)

    @property
    def read(self) -> int:
        """Rows that the sources hold."""
        return sum(source.read for source in self.sources)

    @property
    def kept(self) -> int:
        """Rows that could be prepared."""
        return sum(source.kept for source in self.sources)

    def begin(self, source: str) -> SourceRows:
        """Start counting the rows of another file or dataset."""
        self.sources.append(SourceRows(source, format=""))
        return self.sources[-1]

    def drop(self, reason: str, place: str, detail: str = "") -> None:
        """Count a row that is left out."""
        entry = self.dropped.setdefault(reason, Dropped(reason, 0, place, detail))
        entry.rows += 1

    def summary(self) -> str:
        """The reasons in one line, the commonest first."""
        said = []
        for entry in self._by_count():
            first = ", ".join(filter(None, (entry.first, entry.detail)))
            said.append(f"{entry.rows} {entry.reason} (first: {first})")
        return "; ".join(said)

    def refuse_drops(self) -> None:
        """DataError if any row was left out."""
        if self.dropped:
            count = sum(entry.rows for entry in self.dropped.values())
            raise DataError(
                f"{count} of {self.read} rows must be left out: {self.summary()}",
                hint="without --strict they are left out and counted",
            )

    def refuse_nothing(self) -> None:
        """DataError if no row is left."""
        if not self.kept:
            raise DataError(
                f"none of {self.read} rows is left: {self.summary()}"
                if self.read
                else f"{', '.join(source.source for source in self.sources)}: no rows",
                hint="--data-format says what the columns hold, --pitfalls what pitfalls mean: "
                "docs/datasets.md",
            )

    def as_json(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "read": self.read,
            "train": self.train,
            "test": self.test,
            "beyond_max_examples": self.beyond_max_examples,
            "dropped": [asdict(entry) for entry in self._by_count()],
            "sources": [asdict(source) for source in self.sources],
            "columns_left_out": dict(sorted(self.columns_left_out.items())),
            "settings": dict(settings),
        }

    def lines(self) -> list[dict[str, Any]]:
        """The same as the lines of a table."""
        counts = {"read": self.read, "train": self.train, "test": self.test}
        if self.beyond_max_examples:
            counts["beyond max_examples"] = self.beyond_max_examples
        blank = {"first": "", "why": ""}
        return [
            *({"what": what, "rows": rows, **blank} for what, rows in counts.items()),
            *(
                {
                    "what": entry.reason,
                    "rows": entry.rows,
                    "first": entry.first,
                    "why": entry.detail,
                }
                for entry in self._by_count()
            ),
        ]

    def _by_count(self) -> list[Dropped]:
        return sorted(self.dropped.values(), key=lambda entry: -entry.rows)
