"""Runs -> one HTML file that shows what they learned, offline: no request leaves it.

plotly.js (about 4.8 MB) is in the page once; figures are JSON that page.js draws. All text of runs
passes through the template's escaping or through `script_json`, and a content security policy lets
nothing run but the two scripts whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gptoss_tools.core.publish import write_text
from gptoss_tools.errors import RunFolderError
from gptoss_tools.report import headline, tables, worst
from gptoss_tools.report.collect import RunRecord, collect, open_runs
from gptoss_tools.report.figures import sections
from gptoss_tools.report.parts import Section
from gptoss_tools.report.style import run_colour

MARKER = "<!-- gptoss report -->"
NAME = "report.html"
HERE = Path(__file__).parent


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    on_notice: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of `runs` to `out` (default: `default_path`), whole or not at all.

    An older report gives way; any other file only with `overwrite`. `on_notice` hears of files that
    could not be read. Raises RunFolderError for a run that is not there and as `check_free`.
    """
    path = Path(out) if out is not None else default_path(runs)
    check_free(path, overwrite)
    records = collect(runs)
    for record in records:
        for note in record.notes:
            (on_notice or (lambda message: None))(note)
    # Half characters, as a terminal of another encoding leaves them, have no place in UTF-8.
    text = render(records).encode("utf-8", errors="replace").decode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror}", hint="name another file with --out"
        ) from error
    return path


def default_path(runs: Sequence[str | Path]) -> Path:
    """Return report.html in the run's folder; of several runs, in the folder of the first one's."""
    first, *others = open_runs(runs)
    return (first.path.parent if others else first.path) / NAME


def check_free(path: Path, overwrite: bool) -> None:
    """Raise RunFolderError if `path` is a folder, or a file that is no report of ours."""
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder, not a file", hint="name a file with --out")
    if path.exists() and not overwrite:
        with path.open("rb") as file:
            ours = MARKER.encode() in file.read(200)
        if not ours:
            raise RunFolderError(
                f"{path} exists and is no report", hint="pass --overwrite, or name another --out"
            )


def render(records: Sequence[RunRecord]) -> str:
    """Return the page."""
    shown = sections(records)
    mistakes = worst.worst_rows(records)
    scripts = {"plotly": get_plotlyjs(), "page": (HERE / "page.js").read_text(encoding="utf-8")}
    scripts = {name: inline_script(text) for name, text in scripts.items()}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    several = len(records) > 1
    return environment.get_template("page.html").render(
        marker=Markup(MARKER),
        title=" and ".join(record.label for record in records),
        runs=[(record.label, run_colour(place)) for place, record in enumerate(records)],
        verdicts=[headline.verdict(record) for record in records],
        cards=[] if several else headline.cards(records[0]),
        comparison=headline.comparison(records) if several else None,
        notes=[note for record in records for note in record.notes],
        sections=shown,
        worst=mistakes,
        no_worst=[_no_worst(record) for record in records if not record.worst],
        choices={
            name: sorted({getattr(row, name) for row in mistakes} - {""})
            for name in ("reason", "phase", "hour")
        },
        tables=[
            table
            for table in (
                tables.differences(records),
                *(tables.starts(record, place) for place, record in enumerate(records)),
                tables.settings(records),
                tables.versions(records),
            )
            if table is not None
        ],
        made=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        figures=Markup(script_json(_figures(shown))),
        scripts={name: Markup(text) for name, text in scripts.items()},
        policy=" ".join(f"'sha256-{_digest(text)}'" for text in scripts.values()),
    )


def inline_script(text: str) -> str:
    """Return JavaScript as it may stand in a page: nothing in it ends or comments out its element.

    Line ends are as the browser's parser would make them, so that hashes agree.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def script_json(content: Any) -> str:
    """Return JSON for a script element: without `<`, without NaN, numbers to 6 digits."""
    text = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c")


def _figures(shown: Sequence[Section]) -> dict[str, Any]:
    """Return each panel's figures: one, or those behind its chooser."""
    return {
        panel.id: [figure for _, figure in panel.choices] or [panel.figure]
        for section in shown
        for panel in section.panels
        if panel.figure is not None
    }


def _no_worst(record: RunRecord) -> str:
    if record.by_reward and record.evaluation is not None:
        return f"{record.label}: its tables have no values, so no decision is known to be bad"
    if record.decisions:
        return f"{record.label}: every decision was the best one"
    return f"no evaluation yet: gptoss evaluate {record.path}"


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
