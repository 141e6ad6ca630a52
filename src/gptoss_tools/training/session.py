"""One sitting of a run: load the model, train to the end or an interruption, publish the adapter.

Expects a claimed, locked and checked run folder: that is `train`'s affair. How a step is taken is
`grpo`'s, when it is saved `flow`'s, what is written down `tracking`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, set_seed

from gptoss_tools.core.claims import mark_latest
from gptoss_tools.core.publish import write_json
from gptoss_tools.core.runs import Run
from gptoss_tools.errors import GptossError, TrainingError
from gptoss_tools.models.loading import load_model
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training.flow import Flow, Interrupted, StopSignals
from gptoss_tools.training.grpo import DecisionTrainer, make_config
from gptoss_tools.training.heldout import HeldOut
from gptoss_tools.training.outcome import Outcome, summarize, write_adapter
from gptoss_tools.training.preparation import Prepared
from gptoss_tools.training.ranks import join
from gptoss_tools.training.records import count_start
from gptoss_tools.training.trackers import tracker
from gptoss_tools.training.tracking import CompletionLog, Metrics, Progress

Notice = Callable[[str], None]


def run_session(
    run: Run,
    prepared: Prepared,
    checkpoint: Path | None,
    *,
    fresh: bool,
    allow_changes: bool,
    on_step: Callable[[Progress], None] | None,
    notice: Notice,
    cache_dir: Path | None,
) -> Outcome:
    """Load, train from `checkpoint` (None: the beginning), and publish the adapter.

    A `fresh` folder is removed again if training never began. Raises TrainingError or Interrupted.
    """
    settings, started = prepared.settings, time.monotonic()
    reached = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
    with contextlib.ExitStack() as stack:
        with _removed_on_failure(run, fresh and prepared.is_main):
            callbacks: list[Any] = []
            completions = None
            if prepared.is_main:
                segment = count_start(run, prepared, reached)
                run.outcome_path.unlink(missing_ok=True)
                shown = settings.model_dump(mode="json")
                callbacks += stack.enter_context(tracker(settings.report_to, run, shown))
                callbacks.append(Metrics(run.metrics_path, segment, on_step))
                if settings.log_completions:
                    path = settings.completion_log_path
                    completions = CompletionLog(
                        Path(path) if path else run.completions_path, segment
                    )
            signals = StopSignals(notice if prepared.is_main else None)
            flow = Flow(
                run,
                signals,
                save_total_limit=settings.save_total_limit,
                weight_decay=settings.weight_decay,
            )
            callbacks.append(flow)
            held_out = None
            if prepared.held_out is not None:
                held_out = HeldOut(run, prepared.held_out, settings)
                callbacks.append(held_out)
            trainer = _trainer(run, prepared, completions, callbacks, allow_changes, cache_dir)
            if held_out is not None:
                held_out.trainer = trainer
        if prepared.is_main:
            _point_latest(run, notice)
        try:
            with signals:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt as stop:
            raise interruption(run, settings) from stop
        except OSError as error:
            if isinstance(error, GptossError):
                raise
            raise TrainingError(
                f"writing to {run.path} failed after step {trainer.state.global_step}: {error}",
                hint=f"make room, then gptoss resume {run.path}",
            ) from error
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the GPU ran out of memory after step {trainer.state.global_step}",
                hint=f"start another run with fewer num_generations or a shorter "
                f"max_completion_length; gptoss resume {run.path} goes on from the last checkpoint",
            ) from error
        except RuntimeError as error:
            # torch.save says nothing better when its zip archive cannot grow.
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            raise TrainingError(
                f"a checkpoint could not be written to {run.path} after step "
                f"{trainer.state.global_step}: the disk is probably full",
                hint=f"make room, then gptoss resume {run.path}",
            ) from error
        steps = int(trainer.state.global_step)
        if flow.interrupted and steps < settings.max_steps:
            raise interruption(run, settings)
        if prepared.is_main:
            write_adapter(run.adapter_path, trainer, step=steps)
            outcome = summarize(run, steps, time.monotonic() - started, reached)
            figures = {k: v for k, v in vars(outcome).items() if not isinstance(v, Path)}
            write_json(run.outcome_path, figures)
        else:
            outcome = Outcome(run.path, run.adapter_path, steps, None, None, None, 0.0)
        join(settings.device).wait_for_everyone()
        return outcome


@contextlib.contextmanager
def _removed_on_failure(run: Run, remove: bool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if remove:
            run.abandon()
        raise


def _trainer(
    run: Run,
    prepared: Prepared,
    completions: CompletionLog | None,
    callbacks: list[Any],
    allow_changes: bool,
    cache_dir: Path | None,
) -> DecisionTrainer:
    settings = prepared.settings
    model = load_model(
        prepared.model,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        experts_implementation=settings.experts_implementation,
        device=settings.device,
        cache_dir=cache_dir,
    )
    # Trackers come as callbacks; `resume` may allow what the run's own settings did not.
    silent = settings.model_copy(update={"report_to": "none", "allow_changes": allow_changes})
    set_seed(settings.seed)  # the adapter's first weights are drawn here
    trainer = DecisionTrainer.build(
        silent,
        model=model,
        tokenizer=prepared.tokenizer,
        dataset=prepared.dataset,
        args=make_config(
            silent, str(run.checkpoints_path), prepared.world_size, rows=len(prepared.dataset)
        ),
        on_completions=completions,
        callbacks=callbacks,
    )
    trainer.remove_callback(ProgressCallback)
    return trainer


def interruption(run: Run, settings: TrainSettings) -> Interrupted:
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
