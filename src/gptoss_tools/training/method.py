"""The ways to train: what each does differently, so that all of them share one lifecycle.

`train` claims, resumes and records runs of every method; `sitting` runs one sitting. A method says
how settings become prepared data and how these become a trainer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptoss_tools.core.runs import Run
from gptoss_tools.errors import RunFolderError
from gptoss_tools.settings import Settings

if TYPE_CHECKING:
    from gptoss_tools.training.prepared import Prepared
    from gptoss_tools.training.sitting import Sitting

MODULES = {
    "train-grpo": "gptoss_tools.training.grpo_method",
    "train-sft": "gptoss_tools.training.sft",
    "pretrain": "gptoss_tools.training.pretraining",
}
"""Each command and the module whose METHOD it is; imported when it is needed."""
COMMAND_OF = {
    "TrainSettings": "train-grpo",
    "SftSettings": "train-sft",
    "PretrainSettings": "pretrain",
}
ADAPTER_SHAPE = frozenset(
    ["adapter", "lora_r", "lora_target_modules", "num_experts", "mixlora_form", "dual_path"]
)


@dataclass(frozen=True)
class Method:
    """One way to train.

    `prepare(settings, cache_dir=, home=)` checks and reads everything, writes nothing and loads no
    weights; `home` is where a resumed run began: paths that are not here are looked for there.
    `build(sitting)` loads the model and returns the trainer. `plan(settings, run, reached)` says
    what a run would do. `finish(sitting, trainer)` may write more once training has ended. Lenient:
    data and settings may change in a run that goes on; each is told, and `prepare` gets the
    `checkpoint=` that it goes on from. `shape` names the settings that never may: what was saved
    would not fit.
    """

    command: str
    prefix: str
    settings: type[Settings]
    prepare: Callable[..., Prepared]
    build: Callable[[Sitting], Any]
    plan: Callable[[Any, Run | None, int], dict[str, Any]]
    finish: Callable[[Sitting, Any], None] | None = None
    shape: frozenset[str] = ADAPTER_SHAPE
    lenient: bool = False


def method_named(command: str) -> Method:
    """Return the method of a command."""
    return importlib.import_module(MODULES[command]).METHOD


def method_for(settings: Settings) -> Method:
    """Return the method whose settings these are."""
    return method_named(COMMAND_OF[type(settings).__name__])


def method_of(run: Run) -> Method:
    """Return the method that `run` was begun with; RunFolderError if it is none of ours."""
    command = run.config.get("command")
    if command not in MODULES:
        raise RunFolderError(
            f"{run.path} holds no run to go on with: config.json names no training command",
            hint="name a run folder or one of its checkpoints",
        )
    return method_named(command)
