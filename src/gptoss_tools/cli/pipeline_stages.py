"""The stages of `gptoss pipeline`: what each depends on, runs and leaves behind."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.history import append
from ..core.publish import is_complete
from ..core.runs import Run
from ..core.stagebook import Book, State, fingerprint
from ..errors import ConfigError, GptossError, RunFolderError
from ..load import COMMAND_SETTINGS, Loaded, load
from ..remote.inputs import sent
from ..settings import PipelineSettings, RemoteSettings
from .pipeline_tables import prepare_tables
from .stages import Stages

# Settings that say where something is or how it is run, not what comes out.
ASIDE = frozenset(
    {
        *("data", "eval_data", "paths", "output_dir", "out", "target", "resume"),
        *("overwrite", "dry_run", "allow_changes", "resume_steps", *RemoteSettings.model_fields),
    }
)
LOG = "log.jsonl"


@dataclass(frozen=True)
class Stage:
    """One stage. `facts` are noted before it begins, `work` does it and returns its figures."""

    name: str
    fingerprint: str
    work: Callable[[State, dict[str, Any]], dict[str, Any]]
    whole: Callable[[dict[str, Any]], bool] = lambda entry: True
    facts: Callable[[State, dict[str, Any]], dict[str, Any]] = lambda state, entry: {}


class Way:
    """The way from tables to an export. `work` gets why it is done and what was noted last time."""

    def __init__(self, settings: PipelineSettings, loaded: Loaded, book: Book) -> None:
        self.settings, self.config, self.book = settings, loaded.config, book
        self.folder = Path(settings.out)
        self.stages = Stages(loaded.config)
        # Every training has a model of its own when none is named.
        self.model = settings.model if loaded.origins["model"] != "default" else None
        # Plain text teaches no decisions: there nothing is evaluated unless it is asked for.
        unasked = settings.training == "pretrain" and loaded.origins["eval_data"] == "default"
        self.eval_data = [path for path in settings.eval_data if path and not unasked]
        if settings.training not in COMMAND_SETTINGS:
            raise ConfigError(
                f"`training` = {settings.training!r}: this version has no such command"
            )

    def plan(self) -> list[Stage]:
        """Return the stages in their order; raises where a setting or an input is wrong."""
        given = self.settings
        inputs = [sent(given.data)[0], sent(self.eval_data)[0]]
        export = self._resolved("export", push=given.push, repo_id=given.repo_id)
        train = self._resolved(
            given.training, model=self.model, from_=self.model, max_steps=given.max_steps
        )
        made = [
            self._resolved("convert-harmony", paths=["x"]),
            self._resolved("calc-reward"),
        ]
        steps: list[tuple[str, Any, dict[str, Any]]] = [
            ("prepare", [inputs, made], {"work": self.prepare, "whole": self.has_tables}),
            (
                "train",
                [given.training, train],
                {"work": self.train, "whole": self.has_run, "facts": self.a_run},
            ),
        ]
        if self.eval_data:
            last = {"work": self.evaluate, "whole": self.has_evaluation, "facts": self.the_run}
            steps.append(("evaluate", self._resolved("evaluate"), last))
        steps += [
            ("log", None, {"work": self.log}),
            ("export", export, {"work": self.export, "whole": self.has_export}),
        ]
        found, before = [], ""
        for name, parts, how in steps:
            before = fingerprint(before, name, parts)
            found.append(Stage(name, before, **how))
        return found

    def prepare(self, state: State, entry: dict[str, Any]) -> dict[str, Any]:
        """Convert and score, in copies, the tables that need it; check them all."""
        figures: dict[str, Any] = {"data": self.settings.data, "eval_data": self.eval_data}
        figures |= {"rows": 0, "converted": 0, "scored": 0}
        made = self.folder / "tables"
        shutil.rmtree(made, ignore_errors=True)  # an older preparation
        if self.settings.training == "train-grpo":
            figures["data"] = prepare_tables(
                self.settings.data, made / "train", self.stages, figures
            )
        if self.eval_data:
            figures["eval_data"] = prepare_tables(
                self.eval_data, made / "heldout", self.stages, figures
            )
        return figures

    def has_tables(self, entry: dict[str, Any]) -> bool:
        made = self.folder / "tables"
        named = [*entry["figures"]["data"], *entry["figures"]["eval_data"]]
        return all(Path(path).is_file() for path in named if Path(path).is_relative_to(made))

    def a_run(self, state: State, entry: dict[str, Any]) -> dict[str, Any]:
        """Go on with the interrupted run, or name a new folder; older runs stay."""
        if state == "interrupted":
            return {"run": entry["run"], "modal": self.settings.modal}
        last = int(entry["run"].rpartition("-")[2]) if entry else 0
        while (self.folder / f"run-{last + 1:03d}").exists():
            last += 1
        run = (self.folder / f"run-{last + 1:03d}").as_posix()
        return {"run": run, "modal": self.settings.modal}

    def train(self, state: State, entry: dict[str, Any]) -> dict[str, Any]:
        """Train, or go on with the run that was interrupted."""
        run, modal = self.run, self.settings.modal
        if state == "interrupted" and (modal or Run(run).config_path.is_file()):
            if outcome := Run(run).outcome:  # it ended, and nobody noted it
                return _plain(outcome)
            try:
                return _plain(self.stages.run("train", "resume", str(run), *self._where(True)))
            except GptossError as error:
                # There it may not have begun; then the same folder is still free.
                if not (modal and error.exit_code == 2):
                    raise
        tables = self.book.entry("prepare")["figures"]
        fields = COMMAND_SETTINGS[self.settings.training].model_fields
        line = [f"--data={path}" for path in tables["data"]]
        line += [f"--eval-data={path}" for path in tables["eval_data"] if "eval_data" in fields]
        if self.model is not None:
            line.append(f"--{'model' if 'model' in fields else 'from'}={self.model}")
        if self.settings.max_steps is not None:
            line.append(f"--max-steps={self.settings.max_steps}")
        line += [f"--output-dir={run}", *self._where(True)]
        return _plain(self.stages.run("train", self.settings.training, *line))

    def has_run(self, entry: dict[str, Any]) -> bool:
        run = Run(Path(entry["run"]))
        if entry["modal"]:
            return True
        return bool(run.outcome) and any(is_complete(run.path / n) for n in ("adapter", "model"))

    def the_run(self, state: State, entry: dict[str, Any]) -> dict[str, Any]:
        return {"run": str(self.run)}

    @property
    def run(self) -> Path:
        """The run of this pipeline's training."""
        return Path(self.book.entry("train")["run"])

    def evaluate(self, state: State, entry: dict[str, Any]) -> dict[str, Any]:
        """Measure the trained policy on the held-out tables."""
        run = self._reachable()
        line = [f"--data={path}" for path in self.book.entry("prepare")["figures"]["eval_data"]]
        # Of the same run and other settings it is another evaluation; else it goes on.
        line += ["--overwrite"] * (state == "changed" and entry.get("run") == str(run))
        line += [f"--out={run / 'evaluation'}", *self._where(False)]
        found = self.stages.run("evaluate", "evaluate", str(run), *line)
        regret, reward = found.get("regret") or {}, found.get("reward") or {}
        return {
            "rows": found.get("n_rows"),
            "regret": regret.get("mean"),
            "regret_base": regret.get("base"),
            "reward": reward.get("mean"),
            "invalid": (found.get("invalid") or {}).get("total"),
        }

    def has_evaluation(self, entry: dict[str, Any]) -> bool:
        there = self.book.entry("train").get("modal")
        return there or (Path(entry["run"]) / "evaluation" / "evaluation.json").is_file()

    def log(self, state: State, entry: dict[str, Any]) -> dict[str, Any]:
        """Put the figures into log.jsonl, and the evaluation's into the run's own tracker."""
        known = {n: self.book.entry(n).get("figures") for n in ("prepare", "train", "evaluate")}
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "run": str(self.run), **known}
        append(self.folder / LOG, json.dumps(line, ensure_ascii=False) + "\n")
        written = {"file": str(self.folder / LOG)}
        run, measured = Run(self.run), known["evaluate"]
        if not measured or run.settings.get("report_to", "none") == "none":
            return written
        from ..training.afterwards import report_figures

        figures = {f"evaluate/{name}": value for name, value in measured.items()}
        return written | {"tracker": report_figures(run, figures)}

    def export(self, state: State, entry: dict[str, Any]) -> dict[str, Any]:
        """Merge the adapter into its base, and upload it with --push."""
        run = self._reachable()
        if (run / "model").is_dir():
            return {"left_out": f"the whole model was trained: {run / 'model'}"}
        line = [f"--out={self.folder / 'export'}", *(["--overwrite"] if entry else [])]
        if self.settings.push:
            line += ["--push", f"--repo-id={self.settings.repo_id}"]
        return _plain(self.stages.run("export", "export", str(run), *line, *self._where(False)))

    def has_export(self, entry: dict[str, Any]) -> bool:
        there = self.book.entry("train").get("modal") or "left_out" in entry["figures"]
        return there or is_complete(self.folder / "export")

    def _reachable(self) -> Path:
        """Return the run; RunFolderError where it is at Modal and the next stage is not."""
        there = self.book.entry("train").get("modal") and not self.settings.modal
        if there and not self.run.is_dir():
            place = f"{self.run} {self.run.parent}"
            raise RunFolderError(
                f"{self.run} was trained at Modal and is not here",
                hint=f"go on with --modal, or modal volume get gptoss-work {place}",
            )
        return self.run

    def _where(self, training: bool) -> list[str]:
        """Return the flags that send a stage to Modal; only a training takes several GPUs."""
        given = self.settings
        if not given.modal:
            return []
        gpu, nodes = (given.gpu, given.nodes) if training else (given.gpu.partition(":")[0], 1)
        secrets = [f"--modal-secrets={name}" for name in given.modal_secrets]
        return ["--modal", f"--gpu={gpu}", f"--nodes={nodes}", *secrets]

    def _resolved(self, command: str, **flags: Any) -> dict[str, Any]:
        """Return a stage's settings as it will find them, without those that change nothing."""
        model = COMMAND_SETTINGS[command]
        known = {name: v for name, v in flags.items() if name in model.model_fields}
        found = load(model, command, flags=known, config=self.config).settings
        return found.model_dump(mode="json", exclude=set(ASIDE))


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a stage: what is one number or one word."""
    return {n: v for n, v in document.items() if isinstance(v, int | float | str)}
