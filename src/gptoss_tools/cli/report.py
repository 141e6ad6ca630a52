"""gptoss report."""

from __future__ import annotations

from pathlib import Path

from ..console import out
from ..load import Loaded
from ..settings import ReportSettings
from .options import command


@command(
    "report",
    ReportSettings,
    positional="runs",
    examples=[
        "gptoss report",
        "gptoss report runs/first --open",
        "gptoss report runs/first runs/second --out compared.html",
    ],
)
def report(settings: ReportSettings, loaded: Loaded) -> None:
    """Make one HTML page that shows what runs learned.

    One file of about 5 MB that needs no network: held-out regret, curves, decisions, settings. It
    goes to report.html in the run's folder, for several runs in the folder that holds the first.
    An older report is replaced; any other file only with --overwrite.
    """
    from ..report.collect import open_runs
    from ..report.page import check_free, default_path, write_report

    runs = [run.path for run in open_runs(settings.runs)]
    path = Path(settings.out) if settings.out else default_path(runs)
    data = {"report": path, "runs": runs}
    if settings.dry_run:
        check_free(path, settings.overwrite)
        out.result({**data, "bytes": None, "written": False}, str(path))
        return
    write_report(runs, path, overwrite=settings.overwrite, on_notice=out.warning)
    out.result({**data, "bytes": path.stat().st_size}, str(path))
    if settings.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
