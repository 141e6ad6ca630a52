"""Tasks of lm-evaluation-harness, run on the loaded model itself.

lm-eval's own model class is given the very object that answers prompts, so an adapter is active by
construction: nothing is saved and loaded again, and no other process is started. Multiple choice
compares log-likelihoods of continuations; no chat template is applied. Which results are kept, and
what they are compared with, is in `task_results`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from gptoss_tools.errors import ConfigError, GptossError, MachineError, first_line
from gptoss_tools.evaluation.policy import Policy
from gptoss_tools.evaluation.task_names import unknown
from gptoss_tools.models.loading import quiet

Share = Callable[[float], None]
Rows = dict[str, dict[str, Any]]
"""Per task: version, n, n_all, num_fewshot, part_of, metrics {name: {value, stderr}}, examples."""


RESAMPLES = 1000  # for standard errors of metrics that are no means: within 2 %
ASKING = ("loglikelihood", "loglikelihood_rolling", "_loglikelihood_tokens", "generate_until")


class Tasks:
    """lm-eval's tasks of these names, found but not loaded; a tag stands for its tasks.

    `definitions` has a digest of each one's YAML. Raises MachineError without lm-eval, ConfigError
    for a name that neither lm-eval nor `folder` has.
    """

    def __init__(self, names: Sequence[str], folder: str | Path | None = None) -> None:
        try:
            self.version: str = import_module("lm_eval").__version__
        except ImportError as error:
            raise MachineError(
                "--tasks needs lm-evaluation-harness, which is not installed here",
                hint="pip install 'gptoss-tools[eval]'",
            ) from error
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"`task_folder` = {str(folder)!r} is not a folder")
        with _hushed():
            self.manager = _manager(names, folder)
        index, tags = self.manager.task_index, self.manager.all_tags
        self.definitions: dict[str, str] = {}
        for name in names:
            if name not in index:
                raise unknown(name, list(index), folder)
            for task in sorted(index[name].tags) if name in tags else [name]:
                text = json.dumps(index[task].cfg, sort_keys=True, default=str)
                self.definitions[task] = hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self, name: str, *, seed: int = 42) -> Loaded:
        """Read a task's data; MachineError where they are not here and cannot be fetched."""
        set_seed(seed)  # some tasks shuffle their choices when they are read
        try:
            with _hushed():
                return Loaded(name, self.manager.load([name]))
        except GptossError:
            raise
        except ImportError as error:
            raise MachineError(f"task {name} needs a package: {first_line(error)}") from error
        except OSError as error:
            raise MachineError(
                f"the data of task {name} are not here and could not be fetched: "
                f"{first_line(error)}",
                hint="check the network and the task's definition; data fetched once are kept",
            ) from error
        except Exception as error:  # a definition may hold code, and err in any way
            what = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"task {name} cannot be read: {what}") from error


class Loaded:
    """A task, or a group of them, with its data."""

    def __init__(self, name: str, loaded: dict[str, Any]) -> None:
        self.name, self.loaded = name, loaded
        self.tasks: list[Any] = list(loaded["tasks"].values())
        if any(getattr(task, "UNSAFE_CODE", False) for task in self.tasks):
            raise ConfigError(f"task {name} runs code that the model has written: not here")

    def size(self, limit: int | None) -> int:
        """Return how many examples will be asked."""
        return sum(min(len(task.eval_docs), limit or sys.maxsize) for task in self.tasks)

    def run(
        self,
        policy: Policy,
        *,
        limit: int | None = None,
        batch_size: int = 32,
        seed: int = 42,
        on_share: Share | None = None,
    ) -> Rows:
        """Ask `policy` the first `limit` examples; `on_share` hears how much is done, 0 to 1.

        Returns a row per task and group. Log-probabilities are taken in float32, whatever the
        model's type. Raises MachineError if a batch does not fit into memory.
        """
        set_seed(seed)
        for task in self.tasks:
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
        try:
            # What a task prints does not belong into our result.
            with _hushed(), contextlib.redirect_stdout(io.StringIO()):
                model = import_module("lm_eval.models.huggingface").HFLM(
                    pretrained=policy.model,
                    tokenizer=policy.tokenizer,
                    batch_size=batch_size,
                    softmax_dtype="float32",
                )
                for name in ASKING:
                    setattr(model, name, functools.partial(_without_bars, getattr(model, name)))
                model.set_cache_hook(_Answered(self.tasks, on_share))
                # Not simple_evaluate: it also runs git and pip, to describe the machine.
                found = import_module("lm_eval").evaluate(
                    model, self.loaded, limit=limit, bootstrap_iters=RESAMPLES
                )
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"{batch_size} sequences of task {self.name} at once do not fit into memory",
                hint=f"--batch-size {max(1, batch_size // 2)}",
            ) from error
        rows = {name: _row(name, found) for name in found["results"]}
        # Not every group has figures of its own; its tasks then stand for themselves.
        group = self.name if rows.get(self.name, {}).get("metrics") else None
        return {
            name: {**row, "part_of": None if name == group else group}
            for name, row in rows.items()
            if row["metrics"]
        }


def run_tasks(
    policy: Policy,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 32,
    include_path: str | Path | None = None,
    seed: int = 42,
) -> dict[str, Any]:
    """Run tasks of lm-eval, or of the folder `include_path`; returns {"lm_eval", "tasks": Rows}.

    Every task's data are read before the first one runs. Raises what `Tasks` and `Loaded` do.
    """
    known = Tasks(tasks, include_path)
    loaded = [known.load(name, seed=seed) for name in known.definitions]
    rows: Rows = {}
    for task in loaded:
        rows |= task.run(policy, limit=limit, batch_size=batch_size, seed=seed)
    return {"lm_eval": known.version, "tasks": rows}


class _Answered:
    """lm-eval tells its cache of every answer; here, it tells who waits for them."""

    def __init__(self, tasks: list[Any], on_share: Share | None) -> None:
        self.tasks, self.on_share = tasks, on_share
        self.done, self.total = 0, 0

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.total = self.total or sum(i.repeats for task in self.tasks for i in task.instances)
        self.done += 1
        if self.on_share is not None:
            self.on_share(self.done / self.total)


def _without_bars(ask: Callable[..., Any], requests: Any, **options: Any) -> Any:
    return ask(requests, **{**options, "disable_tqdm": True})


def _manager(names: Sequence[str], folder: str | Path | None) -> Any:
    make = import_module("lm_eval.tasks").TaskManager
    if folder is not None:
        own = make(include_path=str(folder), include_defaults=False)
        # A task names no other one, so the 14 000 built-in ones, some seconds, are not needed.
        if set(names) <= set(own.all_subtasks):
            return own
    return make(include_path=None if folder is None else str(folder))


def _row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return what lm-eval found about a task or group, and the values of its single examples."""
    leaves = _leaves(name, found["group_subtasks"])
    samples = [sample for leaf in leaves for sample in found["samples"][leaf]]
    metrics, examples = {}, {}
    for key, value in found["results"][name].items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or (figure := _number(value)) is None:
            continue
        shown = metric if kind == "none" else key
        error = found["results"][name].get(f"{metric}_stderr,{kind}")
        metrics[shown] = {"value": figure, "stderr": _number(error)}
        examples[shown] = [
            _number(s[metric]) for s in samples if s["filter"] == kind and metric in s
        ]
    return {
        "version": found["versions"].get(name),
        "n": sum(found["n-samples"][leaf]["effective"] for leaf in leaves),
        "n_all": sum(found["n-samples"][leaf]["original"] for leaf in leaves),
        "num_fewshot": found["n-shot"].get(name),
        "metrics": metrics,
        "examples": examples,
    }


def _leaves(name: str, below: dict[str, list[str]]) -> list[str]:
    parts = below.get(name)
    return [leaf for part in parts for leaf in _leaves(part, below)] if parts else [name]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep lm-eval's warnings from the terminal, unless somebody has asked its logger to speak."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    if before == logging.NOTSET:
        logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(before)
