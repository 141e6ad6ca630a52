"""gptoss pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import align, out
from ..core.locks import hold
from ..core.stagebook import NAME, Book
from ..errors import RunFolderError
from ..load import Loaded
from ..settings import PipelineSettings
from .common import hub_token
from .options import command
from .pipeline_stages import Stage, Way

SHOWN = {
    "prepare": ("rows", "converted", "scored"),
    "train": ("steps", "reward_last", "loss_last", "regret_best"),
    "evaluate": ("regret", "regret_base", "reward", "invalid"),
    "log": ("tracker",),
    "export": ("bytes_total", "url", "left_out"),
}


@command(
    "pipeline",
    PipelineSettings,
    examples=[
        "gptoss pipeline --data tables/train --eval-data tables/heldout",
        "gptoss pipeline --dry-run",
        "gptoss pipeline --modal --gpu H200 --push --repo-id me/first",
    ],
)
def pipeline(settings: PipelineSettings, loaded: Loaded) -> None:
    """Prepare, train, evaluate, log, export: what is not done yet.

    Every stage is a command of its own with its table in gptoss.toml. A stage whose settings and
    inputs are those of last time is skipped; a change runs it and all after it; an interrupted
    training goes on. OUT/pipeline.json keeps the figures.
    """
    folder = Path(settings.out)
    if folder.exists() and not (folder / NAME).is_file() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} holds no pipeline", "name another folder with --out")
    way = Way(settings, loaded, Book(folder))
    plan = way.plan()
    if settings.dry_run:
        rows = _dry(way.book, plan)
        out.table(rows, {"folder": folder, "stages": rows})
        return
    if settings.push and not settings.modal:  # asked before anything heavy begins
        from ..export.hub import require_push

        require_push(hub_token(), settings.repo_id)
    folder.mkdir(parents=True, exist_ok=True)
    ran: dict[str, str] = {}
    with hold(folder / ".lock", str(folder)):
        way.book = Book(folder)
        for number, stage in enumerate(plan, start=1):
            if not ran and _is_done(way.book, stage):
                continue
            out.notice(f"stage {number} of {len(plan)}: {stage.name}")
            ran[stage.name] = _carry_out(way, stage)
    _show(way.book, folder, plan, ran)
    out.hint(f"gptoss report {way.run}")


def _is_done(book: Book, stage: Stage) -> bool:
    done = book.state(stage.name, stage.fingerprint) == "done"
    return done and stage.whole(book.entry(stage.name))


def _carry_out(way: Way, stage: Stage) -> str:
    """Do one stage and note it; return how it went."""
    book, before = way.book, way.book.entry(stage.name)
    state = book.state(stage.name, stage.fingerprint)
    book.begin(stage.name, stage.fingerprint, **stage.facts(state, before))
    began = time.monotonic()
    try:
        figures = stage.work(state, before)
    except KeyboardInterrupt as stop:
        stop.hint = "the same command goes on from here"  # type: ignore[attr-defined]
        stop.args = (f"interrupted in the stage {stage.name}",)
        raise
    book.finish(stage.name, time.monotonic() - began, figures)
    return "went on" if state == "interrupted" and stage.name == "train" else "ran"


def _dry(book: Book, plan: Sequence[Stage]) -> list[dict[str, Any]]:
    rows, running = [], False
    for stage in plan:
        state = book.state(stage.name, stage.fingerprint)
        running = running or not _is_done(book, stage)
        why = {"done": "its output is gone", "new": ""}.get(state, state)
        rows.append(
            {
                "stage": stage.name,
                "state": "would run" if running else "done",
                "why": why if running else "",
            }
        )
    return rows


def _show(book: Book, folder: Path, plan: Sequence[Stage], ran: dict[str, str]) -> None:
    rows, data = [], {}
    for stage in plan:
        entry = book.entry(stage.name)
        figures = entry["figures"]
        shown = {name: figures.get(name) for name in SHOWN[stage.name]}
        rows.append(
            {
                "stage": stage.name,
                "": ran.get(stage.name, "done before"),
                "seconds": entry["seconds"],
                "figures": "  ".join(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in shown.items()
                    if value is not None
                ),
            }
        )
        data[stage.name] = {**figures, "ran": stage.name in ran, "seconds": entry["seconds"]}
    run = book.entry("train")["run"]
    out.result(
        {"folder": folder, "run": run, "stages": data},
        f"{align(rows)}\nrun: {run}",
    )
