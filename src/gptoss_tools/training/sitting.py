"""One sitting of a run: load the model, train to the end or an interruption, publish the result.

Expects a claimed, locked and checked run folder: that is `train`'s affair. How a step is taken is
the method's, when it is saved `flow`'s, what is written down `tracking`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback

from gptoss_tools.core.claims import mark_latest
from gptoss_tools.core.publish import write_json
from gptoss_tools.core.runs import Run
from gptoss_tools.errors import GptossError, RewardError, TrainingError
from gptoss_tools.models.held import Loader
from gptoss_tools.models.loading import load_model
from gptoss_tools.training.flow import Flow, Interrupted, StopSignals
from gptoss_tools.training.method import Method
from gptoss_tools.training.outcome import Outcome, summarize, write_trained
from gptoss_tools.training.prepared import Prepared
from gptoss_tools.training.ranks import join
from gptoss_tools.training.records import count_start
from gptoss_tools.training.trackers import tracker
from gptoss_tools.training.tracking import Metrics, Progress

Notice = Callable[[str], None]


@dataclass
class Sitting:
    """One start of a run and what its trainer is made of.

    `callbacks` already save, stop, count and report; a method may append its own. `segment` numbers
    the starts of the run, from 1 (0 on ranks that write nothing). `load` is called as `load_model`.
    """

    run: Run
    prepared: Prepared
    checkpoint: Path | None
    allow_changes: bool
    cache_dir: Path | None
    notice: Notice
    load: Loader = load_model
    segment: int = 0
    callbacks: list[Any] = field(default_factory=list)

    @property
    def settings(self) -> Any:
        return self.prepared.settings

    @property
    def reached(self) -> int:
        """The optimizer steps done before this sitting."""
        return int(self.checkpoint.name.removeprefix("step-")) if self.checkpoint else 0


def run_sitting(
    method: Method, sitting: Sitting, *, fresh: bool, on_step: Callable[[Progress], None] | None
) -> Outcome:
    """Load, train from the checkpoint (None: the beginning), and publish what was trained.

    A `fresh` folder is removed again if training never began. Raises TrainingError or Interrupted.
    """
    run, prepared, settings, notice = (
        sitting.run,
        sitting.prepared,
        sitting.settings,
        sitting.notice,
    )
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        with _removed_on_failure(run, fresh and prepared.is_main):
            if prepared.is_main:
                sitting.segment = count_start(run, prepared, sitting.reached)
                run.outcome_path.unlink(missing_ok=True)
                shown = settings.model_dump(mode="json")
                sitting.callbacks += stack.enter_context(tracker(settings.report_to, run, shown))
                sitting.callbacks.append(Metrics(run.metrics_path, sitting.segment, on_step))
            signals = StopSignals(notice if prepared.is_main else None)
            flow = Flow(
                run,
                signals,
                save_total_limit=settings.save_total_limit,
                weight_decay=settings.weight_decay,
            )
            sitting.callbacks.append(flow)
            trainer = method.build(sitting)
            trainer.remove_callback(ProgressCallback)
            trainer.remove_callback(PrinterCallback)  # stdout belongs to results
        if prepared.is_main:
            _point_latest(run, notice)
        with _explained(run, settings, trainer), signals:
            checkpoint = sitting.checkpoint
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        steps = int(trainer.state.global_step)
        if flow.interrupted and steps < settings.max_steps:
            raise interruption(run, settings)
        if prepared.is_main:
            write_trained(run, trainer, step=steps)
        if method.finish is not None:
            method.finish(sitting, trainer)
        if prepared.is_main:
            outcome = summarize(run, steps, time.monotonic() - started, sitting.reached)
            figures = {k: v for k, v in vars(outcome).items() if not isinstance(v, Path)}
            write_json(run.outcome_path, figures)
        else:
            outcome = Outcome(run.path, steps, 0.0)
        join(settings.device).wait_for_everyone()
        return outcome


@contextlib.contextmanager
def _explained(run: Run, settings: Any, trainer: Any) -> Iterator[None]:
    """Say in a sentence what ended training early, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise interruption(run, settings) from stop
    except RewardError as error:
        error.advise(f"gptoss resume {run.path} goes on from the last checkpoint")
        raise
    except OSError as error:
        if isinstance(error, GptossError):
            raise
        raise TrainingError(
            f"writing to {run.path} failed after step {trainer.state.global_step}: {error}",
            hint=f"make room, then gptoss resume {run.path}",
        ) from error
    except torch.OutOfMemoryError as error:
        smaller = "num_generations or a shorter max_completion_length"
        if not hasattr(settings, "num_generations"):
            smaller = "rows per step (per_device_train_batch_size) or shorter ones"
        if hasattr(settings, "windows_per_step"):
            smaller = "windows_per_step or a shorter block_size"
        raise TrainingError(
            f"the GPU ran out of memory after step {trainer.state.global_step}",
            hint=f"start another run with fewer {smaller}; gptoss resume {run.path} goes on from "
            "the last checkpoint",
        ) from error
    except RuntimeError as error:
        if "probability tensor contains" in str(error):  # torch's word for logits of NaN
            raise TrainingError(
                f"the model's answers are no numbers after step {trainer.state.global_step}",
                hint="start another run with a smaller learning_rate; is the base model sound?",
            ) from error
        # torch.save says nothing better when its zip archive cannot grow.
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        raise TrainingError(
            f"a checkpoint could not be written to {run.path} after step "
            f"{trainer.state.global_step}: the disk is probably full",
            hint=f"make room, then gptoss resume {run.path}",
        ) from error


@contextlib.contextmanager
def _removed_on_failure(run: Run, remove: bool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if remove:
            run.abandon()
        raise


def interruption(run: Run, settings: Any) -> Interrupted:
    """Say where the run stands and how it goes on."""
    point = Run(run.path).checkpoint()
    where = f"after step {point.step}" if point else "before the first checkpoint"
    return Interrupted(
        f"interrupted {where} of {settings.max_steps}; {run.path} is whole",
        hint=f"gptoss resume {run.path}",
    )


def _point_latest(run: Run, notice: Notice) -> None:
    try:
        mark_latest(run)
    except OSError as error:
        notice(f"runs/latest stays as it is: {error}")
