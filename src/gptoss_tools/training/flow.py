"""When a run saves and when it stops: rolling checkpoints, Ctrl-C, SIGTERM, and how it goes on.

The first signal lets the step in progress end, saves, and stops; a second one stops at once, at the
cost of that step. Nothing here changes a weight, except that a resumed run takes its learning rate
and its intervals from its own settings instead of the checkpoint's copy.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from gptoss_tools.core.runs import Run
from gptoss_tools.errors import GptossError
from gptoss_tools.training.checkpoints import Pace, mark_rolling, rotate
from gptoss_tools.training.ranks import any_rank


class Interrupted(KeyboardInterrupt):
    """The user or the system stopped training; the run is whole and can go on (exit code 130)."""

    exit_code = 130

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint

    _render_traceback_ = GptossError._render_traceback_


class StopSignals:
    """While entered, a first SIGINT, SIGTERM or SIGHUP only sets `asked`; a second one raises.

    Elsewhere than in the main thread Python allows no handlers: then signals act as always.
    """

    def __init__(self, on_notice: Callable[[str], None] | None = None):
        self.asked: str | None = None
        self.on_notice = on_notice
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # An ignored signal (nohup, a job in the background) stays ignored.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: Any) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        if self.on_notice is not None:
            self.on_notice(
                f"{self.asked}: saving after this step, then stopping; once more stops at once"
            )


class Flow(TrainerCallback):
    """Save, rotate and stop. Every rank has one; only rank 0 touches the run folder."""

    def __init__(
        self,
        run: Run,
        signals: StopSignals,
        *,
        save_total_limit: int | None = None,
        weight_decay: float = 0.0,
        pace: Pace | None = None,
    ):
        self.run, self.signals, self.save_total_limit = run, signals, save_total_limit
        self.weight_decay = weight_decay
        self.pace = pace or Pace()
        self.interrupted = False
        self._rolling = False
        self._began = 0.0

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        """Let a resumed run follow its own settings; with the same settings nothing changes."""
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps
        state.max_steps = args.max_steps
        if state.global_step and optimizer is not None and lr_scheduler is not None:
            follow_schedule(args.learning_rate, optimizer, lr_scheduler)
            optimizer.param_groups[0]["weight_decay"] = self.weight_decay
        self.pace.last = self.pace.clock()

    def on_step_end(self, args, state, control, **kwargs):
        """Decide, the same on every rank, whether to save and whether to stop."""
        due = state.is_world_process_zero and self.pace.due()
        stop, due = any_rank(self.signals.asked is not None, due)
        self._rolling = not control.should_save and (stop or due)
        self.interrupted = stop and not control.should_training_stop
        control.should_save = control.should_save or self._rolling
        control.should_training_stop = control.should_training_stop or stop
        self._began = time.monotonic()
        return control

    def on_save(self, args, state, control, **kwargs):
        """Note what the save cost; drop what it replaces."""
        if state.is_world_process_zero:
            self.pace.saved(time.monotonic() - self._began)
            if self._rolling:
                mark_rolling(self.run.checkpoint_path_for(state.global_step))
            rotate(self.run, self.save_total_limit)


def follow_schedule(learning_rate: float, optimizer: Any, scheduler: Any) -> None:
    """Set the rate of the next step to what this run's own schedule says.

    The checkpoint holds the rate that its own horizon gave. For the same horizon the product below
    is the one the scheduler computed, bit for bit.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    plain = getattr(scheduler, "scheduler", scheduler)
    plain.base_lrs = [learning_rate] * len(plain.base_lrs)
    rates = [
        base * fn(plain.last_epoch)
        for base, fn in zip(plain.base_lrs, plain.lr_lambdas, strict=True)
    ]
    for group, rate in zip(inner.param_groups, rates, strict=True):
        group["initial_lr"], group["lr"] = learning_rate, rate
    plain._last_lr = rates
