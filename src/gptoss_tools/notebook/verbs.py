"""Train, try out, or do all of it at once."""

from __future__ import annotations

from collections.abc import Callable

from gptoss_tools.notebook.exporting import export_checkpoint
from gptoss_tools.notebook.session import Session, TrainerState, prepare_session, settings_of
from gptoss_tools.notebook.settings import SessionSettings
from gptoss_tools.settings import DecodingSettings, TrainSettings
from gptoss_tools.training.outcome import Outcome
from gptoss_tools.training.tracking import Progress
from gptoss_tools.training.train import train, train_claimed

GOES_ON = frozenset(
    [
        *("max_steps", "save_steps", "save_total_limit", "logging_steps", "eval_steps"),
        *("eval_data", "eval_batch_size", "log_completions", "completion_log_path"),
        *("report_to", "run_name"),
    ]
)
"""What may change in a run that goes on; all else makes another run."""


def train_grpo(
    config: TrainSettings,
    session: Session,
    *,
    on_step: Callable[[Progress], None] | None = None,
) -> TrainerState:
    """Train the session's run to its end, or go on with it, exactly, where it was interrupted.

    Once it is finished, the same settings train a new run with a fresh adapter, and so do others;
    only with a larger `max_steps` the finished run goes on. An interrupted cell raises
    KeyboardInterrupt with the run saved: call again, or `gptoss resume RUN`. Raises as
    `training.train`.
    """
    config = settings_of(config)
    session.release()
    with session.at_work(), session.display.training(config.max_steps) as show:

        def told(step: Progress) -> None:
            show(step)
            if on_step is not None:
                on_step(step)

        try:
            outcome = _run(config, session, told)
        finally:
            point = session.run.checkpoint()
            if point is not None:
                session.state = TrainerState(session.run.path, point.step)
    session.state = TrainerState(outcome.run, outcome.steps, outcome)
    return session.state


def _run(config: SessionSettings, session: Session, on_step: Callable[[Progress], None]) -> Outcome:
    """Begin, go on or begin anew: whatever `config` means for the session's run."""
    new, old, run = config.training(), session.config.training(), session.run
    changed = {
        name for name in TrainSettings.model_fields if getattr(new, name) != getattr(old, name)
    }
    begun = session.state is not None or run.metrics_path.exists()
    finished = bool(run.outcome) and new.max_steps <= run.outcome["steps"]
    if not begun and not changed and run.config_path.exists():
        return train_claimed(session.claimed, on_step=on_step)
    if not begun or finished or not changed <= GOES_ON:
        if not begun:
            run.abandon()
        session.claim(config)
        return train_claimed(session.claimed, on_step=on_step)
    return train(
        new.model_copy(update={"resume": str(run.path)}),
        explicit=changed,
        origins=config.origins(),
        on_step=on_step,
        on_notice=session.display.notice,
        cache_dir=session.claimed.cache_dir,
        load=session.base,
    )


def quick_test(config: TrainSettings, session: Session, test_question: str | None = None) -> str:
    """Ask the session's model one question and return what it answers to the user.

    Without a question it is the settings' own, the first held-out prompt or the first of all.
    Greedy. Shows every channel of the answer.
    """
    config = settings_of(config)
    rows = session.test_dataset or session.train_dataset
    question = test_question or config.test_question or rows[0]["prompt"]
    decoding = DecodingSettings.model_validate({"max_new_tokens": config.max_completion_length})
    with session.at_work():
        settings = session.claimed.prepared.settings  # its date, as in training
        [answer] = session.sampler.answer([question], decoding=decoding, prompt=settings)
    session.display.result(f"{session.sampler.source.label}\n{answer.completion.transcript()}")
    return answer.completion.final or ""


def run_full_pipeline(config: TrainSettings) -> tuple[Session, TrainerState, str]:
    """Prepare, train, export and try out; return the session, the state and the export's path."""
    session = prepare_session(config)
    state = train_grpo(config, session)
    path = export_checkpoint(config, state)
    quick_test(config, session)
    return session, state, path
