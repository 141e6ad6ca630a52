"""Tasks of lm-eval for a policy and its base: what is run, what is not run again, where it goes.

How a task is run is in `tasks`, how results are kept and compared in `task_results`.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gptoss_tools.core.publish import write_json
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.errors import RunFolderError
from gptoss_tools.evaluation.evaluate import (
    DECISIONS,
    EVALUATION,
    LOOP,
    PACKAGES,
    folder_of,
    loader_of,
    plan_of,
)
from gptoss_tools.evaluation.journal import NAME as JOURNAL
from gptoss_tools.evaluation.sources import Source, find_source
from gptoss_tools.evaluation.task_results import NAME, Finished, beside, read_evaluation
from gptoss_tools.evaluation.tasks import Tasks
from gptoss_tools.evaluation.work import Work, base_source, default_folder
from gptoss_tools.models.adapters import without_adapter
from gptoss_tools.models.survey import version_of
from gptoss_tools.settings import EvaluateSettings
from gptoss_tools.tes.plant import Plant

NO_ROWS = DecisionTable([], None, None, np.zeros(0, dtype=np.int64), pd.DataFrame(), "", [], [])

Progress = Callable[[int, int], None]
Notice = Callable[[str], None]


@dataclass(frozen=True)
class TaskWork:
    """Tasks that can begin: which, of what, compared with what, and where they are written."""

    settings: EvaluateSettings
    source: Source
    base: Source | None
    tasks: Tasks
    folder: Path


@dataclass(frozen=True)
class _Model:
    """Whose tasks they are: `sha` names its weights, `bare` puts its adapter aside."""

    name: str
    sha: str
    source: Source
    bare: bool = False


def prepare_tasks(settings: EvaluateSettings, on_model: str | None = None) -> TaskWork:
    """Check what can be checked without a model; `on_model` replaces an adapter's base.

    Raises RunFolderError for a target that is not there, and what `Tasks` does.
    """
    source = find_source(settings.target, on_model)
    return TaskWork(
        settings=settings,
        source=source,
        base=base_source(settings, source),
        tasks=Tasks(settings.tasks, settings.task_folder),
        folder=Path(settings.out) if settings.out else default_folder(source, settings.target),
    )


def evaluate_tasks(
    work: TaskWork,
    *,
    on_progress: Progress | None = None,
    on_notice: Notice | None = None,
    cache_dir: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run the tasks that are not finished, and return evaluation.json with the results of all.

    What else it holds of the same weights stays. `on_progress` counts examples. Raises
    RunFolderError where the folder holds something else, and what `load_policy` does.
    """
    # Overwriting tasks leaves the answers to the tables' rows alone.
    settings = work.settings.model_copy(update={"overwrite": False})
    alone = Work(settings, work.source, work.base, NO_ROWS, None, [], Plant(), work.folder)
    with folder_of(alone) as folder:
        plan, base_sha = plan_of(alone, cache_dir)
        models = [_Model("policy", plan["policy_sha256"], work.source)]
        if work.base is not None:
            models.append(_Model("base", base_sha, work.base, bare=work.base is work.source))
        _claim(folder, models[0].sha, work.settings.overwrite)
        (folder / JOURNAL).touch()  # a journal without answers: the folder is an evaluation's
        finished = Finished(folder / NAME, work.tasks, settings)
        _run(work, models, finished, on_progress, on_notice or (lambda message: None), cache_dir)
        base = None if work.base is None else work.base.base
        result = read_evaluation(folder) or {
            "format": 1,
            "target": str(settings.target),
            "label": work.source.label,
            "policy_sha256": models[0].sha,
            "step": work.source.step,
            "base": base,
            "command": command,
            "versions": {name: version_of(name) for name in PACKAGES},
        }
        shared = {"limit": settings.limit, "seed": settings.seed, "lm_eval": work.tasks.version}
        ours, *others = [finished.rows(model.sha) for model in models]
        result["tasks"] = result.get("tasks", {}) | {
            name: {**beside(row, others[0][name] if others else None), "base": base, **shared}
            for name, row in ours.items()
        }
        write_json(folder / EVALUATION, result)
    return result


def _run(
    work: TaskWork,
    models: list[_Model],
    finished: Finished,
    on_progress: Progress | None,
    notice: Notice,
    cache_dir: Path | None,
) -> None:
    """Run what is missing, model by model; two are never held at once."""
    settings = work.settings
    wanted = [(model, name) for model in models for name in work.tasks.definitions]
    missing = [(m, n) for m, n in wanted if settings.overwrite or not finished.has(m.sha, n)]
    if len(missing) < len(wanted):
        notice(f"{len(wanted) - len(missing)} finished tasks are in {finished.path} already")
    # All data before any model: what fails is the network.
    names = dict.fromkeys(name for _, name in missing)
    loaded = {name: work.tasks.load(name, seed=settings.seed) for name in names}
    sizes = [loaded[name].size(settings.limit) for _, name in missing]
    load: Any = None
    for place, (model, name) in enumerate(missing):
        if load is None or model.source is not missing[place - 1][0].source:
            load = None
            gc.collect()
            torch.cuda.empty_cache()  # else its memory would not count as free
            load = loader_of(model.source, settings, cache_dir, notice)
        notice(f"task {name}, {model.name}: {sizes[place]} examples")

        def share(done: float, place: int = place) -> None:
            if on_progress is not None:
                on_progress(sum(sizes[:place]) + int(done * sizes[place]), sum(sizes))

        with without_adapter(load().model) if model.bare else contextlib.nullcontext():
            rows = loaded[name].run(
                load(),
                limit=settings.limit,
                batch_size=settings.batch_size,
                seed=settings.seed,
                on_share=share,
            )
        finished.add(model.sha, name, rows)


def _claim(folder: Path, sha: str, overwrite: bool) -> None:
    """Refuse an evaluation of other weights; with `overwrite`, remove it."""
    if read_evaluation(folder).get("policy_sha256", sha) == sha:
        return
    if not overwrite:
        raise RunFolderError(
            f"{folder} holds an evaluation of something else: policy_sha256 differ",
            hint="--overwrite replaces it, --out names another folder",
        )
    for name in (JOURNAL, EVALUATION, DECISIONS, LOOP, NAME):
        (folder / name).unlink(missing_ok=True)
