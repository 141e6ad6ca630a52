"""Every training, fresh or resumed: from settings to a run folder with what was trained.

Everything that can be refused is refused before a weight loads, and nothing is left behind then.
With several processes, rank 0 alone touches the run folder; the others learn its name from it.
What differs between the ways to train: `method`. What happens once the model loads: `sitting`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_tools.core.claims import check_unused
from gptoss_tools.core.publish import sweep
from gptoss_tools.core.runs import Run, open_run
from gptoss_tools.errors import ConfigError, RunFolderError
from gptoss_tools.models.held import Loader
from gptoss_tools.models.loading import load_model
from gptoss_tools.settings import ResumeSettings
from gptoss_tools.training.checkpoints import schedule_note
from gptoss_tools.training.flow import Interrupted
from gptoss_tools.training.logs import log_file
from gptoss_tools.training.method import Method, method_for, method_of
from gptoss_tools.training.outcome import Outcome
from gptoss_tools.training.prepared import Prepared
from gptoss_tools.training.ranks import from_main, join
from gptoss_tools.training.records import begin, go_on, set_aside_newer
from gptoss_tools.training.resuming import merged_settings, resume_changes
from gptoss_tools.training.sitting import Notice, Sitting, run_sitting
from gptoss_tools.training.tracking import Progress

__all__ = [
    "Claimed",
    "Interrupted",
    "Outcome",
    "Progress",
    "claim_run",
    "plan",
    "resume",
    "train",
    "train_claimed",
]


def train(
    settings: Any,
    *,
    explicit: Collection[str] = (),
    origins: Mapping[str, str] | None = None,
    command: str | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_notice: Notice | None = None,
    cache_dir: Path | None = None,
    load: Loader = load_model,
) -> Outcome:
    """Train a new run, or go on with `settings.resume`; return where the result is.

    `settings` are those of a method, TrainSettings for GRPO. `explicit` names the settings the user
    gave: with `resume` only these may differ from the run's own. `origins` (where each setting
    comes from) and the `command` line are kept in the run folder. `load` gives the base model: a
    HeldModel has it in memory already. Raises DataError, ConfigError, RunFolderError or
    MachineError before anything loads, TrainingError afterwards, Interrupted (a KeyboardInterrupt)
    on Ctrl-C or SIGTERM.
    """
    if settings.resume is not None:
        run = open_run(settings.resume)
        changes = {name: getattr(settings, name) for name in explicit}
        known = {name: (origins or {}).get(name, "given") for name in changes}
        told = Told(known, command, on_step, on_notice)
        return _go_on(run, changes, settings.allow_changes, told, cache_dir, load)
    claimed = claim_run(
        settings,
        origins=origins,
        command=command,
        on_notice=on_notice,
        cache_dir=cache_dir,
        load=load,
    )
    return train_claimed(claimed, on_step=on_step)


def claim_run(
    settings: Any,
    *,
    origins: Mapping[str, str] | None = None,
    command: str | None = None,
    on_notice: Notice | None = None,
    cache_dir: Path | None = None,
    load: Loader = load_model,
) -> Claimed:
    """Check everything, read the data and make the run folder: the first half of `train`."""
    method, notice = method_for(settings), _speaker(settings.device, on_notice)
    if settings.output_dir is not None and join(settings.device).is_main_process:
        check_unused(Path(settings.output_dir))
    prepared = method.prepare(settings, cache_dir=cache_dir, **_held_by(load))
    prepared = replace(prepared, origins=dict(origins or {}), command=command)
    for note in prepared.notes:
        notice(note)
    run = from_main(lambda: begin(method, prepared))
    notice(f"run folder {run.path}")
    return Claimed(method, run, prepared, notice, cache_dir, load)


def train_claimed(
    claimed: Claimed, *, on_step: Callable[[Progress], None] | None = None
) -> Outcome:
    """Train a run that `claim_run` made: the second half of `train`."""
    run, notice = claimed.run, claimed.notice
    with _held(run), _logged(run, notice):
        sitting = Sitting(
            run, claimed.prepared, None, False, claimed.cache_dir, notice, claimed.load
        )
        return run_sitting(claimed.method, sitting, fresh=True, on_step=on_step)


@dataclass(frozen=True)
class Claimed:
    """A new run with a folder of its own in which training has not begun."""

    method: Method
    run: Run
    prepared: Prepared
    notice: Notice
    cache_dir: Path | None
    load: Loader


def resume(
    settings: ResumeSettings,
    *,
    origins: Mapping[str, str] | None = None,
    command: str | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_notice: Notice | None = None,
    cache_dir: Path | None = None,
) -> Outcome:
    """Go on with a run of any method where its newest complete checkpoint, or the named one, ended.

    With the same `max_steps` the adapter ends with the bits of an uninterrupted run (on CPU); with
    another one the learning rate schedule is stretched, see `checkpoints`. Raises as `train`.
    """
    run = open_run(settings.run)
    changes = resume_changes(settings)
    known = {name: (origins or {}).get(name, "given") for name in changes}
    told = Told(known, command, on_step, on_notice)
    return _go_on(run, changes, settings.allow_changes, told, cache_dir, load_model)


@dataclass(frozen=True)
class Told:
    """What the caller said of this start and wants to hear of it."""

    origins: dict[str, str]
    command: str | None
    on_step: Callable[[Progress], None] | None
    on_notice: Notice | None


def _go_on(
    run: Run,
    changes: dict[str, Any],
    allow_changes: bool,
    told: Told,
    cache_dir: Path | None,
    load: Loader,
) -> Outcome:
    method = method_of(run)
    device = run.settings.get("device", "auto")
    state, notice = join(device), _speaker(device, told.on_notice)
    allow_changes = allow_changes or method.lenient
    with _held(run), _logged(run, notice):
        if state.is_main_process:
            sweep(run.path)
            sweep(run.checkpoints_path)
        state.wait_for_everyone()
        point = from_main(run.checkpoint)
        reached = point.step if point else 0
        settings = merged_settings(method, run, changes, reached)
        _check_room(run, settings, reached)
        more = {"checkpoint": point.path if point else None} if method.lenient else {}
        more |= _held_by(load)
        home = run.config.get("cwd")
        prepared = method.prepare(settings, cache_dir=cache_dir, home=home, **more)
        prepared = replace(prepared, origins=told.origins, command=told.command)
        before = run.settings.get("max_steps", settings.max_steps)
        notes = from_main(lambda: go_on(run, method, prepared, reached, allow_changes))
        if note := schedule_note(before, settings.max_steps, reached, settings.lr_scheduler_type):
            notes.append(note)
        notes += from_main(lambda: set_aside_newer(run, reached))
        notes += prepared.notes if method.lenient else []
        notice(f"{run.path} goes on after step {reached} of {settings.max_steps}")
        for path in run.damaged():
            notice(f"{path} was left out: files of it are missing or changed")
        for note in notes:
            notice(note)
        sitting = Sitting(
            run, prepared, point.path if point else None, allow_changes, cache_dir, notice, load
        )
        return run_sitting(method, sitting, fresh=False, on_step=told.on_step)


def plan(wanted: Any, explicit: Collection[str] = ()) -> dict[str, Any]:
    """Say what `train` (with the same `explicit`) or `resume` would do; load and write nothing."""
    resuming = isinstance(wanted, ResumeSettings)
    target = wanted.run if resuming else wanted.resume
    if not resuming and target is None:
        if wanted.output_dir is not None:
            check_unused(Path(wanted.output_dir))
        return method_for(wanted).plan(wanted, None, 0)
    run = open_run(target)
    method, point = method_of(run), run.checkpoint()
    given = {name: getattr(wanted, name) for name in explicit}
    changes = resume_changes(wanted) if resuming else given
    reached = point.step if point else 0
    return method.plan(merged_settings(method, run, changes, reached), run, reached)


def _speaker(device: str, on_notice: Notice | None) -> Notice:
    """Join the other processes; only rank 0 has something to say."""
    if on_notice is None or not join(device).is_main_process:
        return lambda message: None
    return on_notice


def _held_by(load: Loader) -> dict[str, Any]:
    """What preparation must know of a base that is in memory already: its bytes count as free."""
    held = getattr(load, "held_bytes", 0)
    return {"held_bytes": held} if held else {}


def _check_room(run: Run, settings: Any, reached: int) -> None:
    """Refuse to go on where nothing is left to do."""
    if reached > settings.max_steps:
        raise ConfigError(
            f"max_steps is {settings.max_steps}, but {run.path} has reached step {reached}",
            hint=f"give a larger --max-steps, or resume {run.path}/checkpoints/step-...",
        )
    if run.outcome_path.is_file() and reached == settings.max_steps:
        raise RunFolderError(
            f"{run.path} is finished: it has reached its {settings.max_steps} steps",
            hint=f"gptoss resume {run.path} --max-steps {2 * settings.max_steps} goes on",
        )


@contextlib.contextmanager
def _held(run: Run) -> Iterator[None]:
    """Hold the run on rank 0; an error there reaches every rank."""
    with contextlib.ExitStack() as stack:
        from_main(lambda: stack.enter_context(run.lock()) and None)
        yield


@contextlib.contextmanager
def _logged(run: Run, notice: Notice) -> Iterator[None]:
    main = join().is_main_process
    with log_file(run.log_path, notice) if main else contextlib.nullcontext():
        yield
