"""What a run tells: metrics.jsonl, completions.csv, and progress for whoever watches.

Files are only ever appended to. After a kill, records of steps that were lost and are done again
stay where they are: `segment` counts the starts of the run, and `core.history` reads, of each
step, what the segment that survived wrote. Elsewhere: log.txt (`logs`), trackers (`trackers`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gptoss_tools.core.history import append, invalid_share
from gptoss_tools.errors import RunFolderError

SEED_COLUMNS = (
    "step",
    "micro_step",
    "prompt",
    "completion",
    "action",
    "reward",
    "target_action",
)
COLUMNS = (*SEED_COLUMNS, "reason", "segment")


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step; `eta` and `seconds` in seconds, None where unknown.

    `regret` and `eval_loss` are the newest on held-out rows.
    """

    step: int
    max_steps: int
    loss: float | None = None
    reward: float | None = None
    invalid: float | None = None
    regret: float | None = None
    eval_loss: float | None = None
    mean_length: float | None = None
    tokens_per_second: float | None = None
    seconds: float = 0.0
    eta: float | None = None

    def facts(self) -> dict[str, Any]:
        """What a progress line shows of the step, None where unknown."""
        return {
            "loss": self.loss if self.reward is None else None,
            "held-out loss": self.eval_loss,
            "reward": self.reward,
            "regret": self.regret,
            "invalid": None if self.invalid is None else f"{self.invalid:.0%}",
            "tokens/s": None if self.tokens_per_second is None else round(self.tokens_per_second),
        }


class Metrics(TrainerCallback):
    """Append one JSON object per logging step, and hand a `Progress` to `on_step`.

    On ranks other than 0, make none of these.
    """

    def __init__(
        self,
        path: Path,
        segment: int,
        on_step: Callable[[Progress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path, self.segment, self.on_step, self.clock = path, segment, on_step, clock
        self.first_step = 0
        self.started = self.last = clock()
        self.last_tokens: float | None = None
        self.records: list[dict[str, Any]] = []
        self.regret: float | None = None
        self.eval_loss: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clocks; close a line that a kill cut off."""
        self.first_step = state.global_step
        self.started = self.last = self.clock()
        self.last_tokens = state.num_input_tokens_seen or 0
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            if torn:
                append(self.path, "\n")

    def on_step_end(self, args, state, control, **kwargs):
        """Report a step without a record of its own, with the last record's figures."""
        if self.on_step is not None and not control.should_log:
            last = self.records[-1] if self.records else {}
            now = {"step": state.global_step, "seconds": self.clock() - self.started}
            self.on_step(self._progress({**last, **now}, state.max_steps))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write the record of this step; the summary at the end of training is no step."""
        if not logs or "train_runtime" in logs:
            return
        if any(name in logs for name in ("eval_regret", "eval_reward", "eval_loss")):
            self._evaluated(state, logs)
            return
        record = self._record(state, logs)
        self.records.append(record)
        self._write(record)
        if self.on_step is not None:
            self.on_step(self._progress(record, state.max_steps))

    def _evaluated(self, state, logs: Mapping[str, Any]) -> None:
        """Write the figures of held-out rows; the time they took is not the step's."""
        self.regret, self.eval_loss = (number(logs.get(f"eval_{n}")) for n in ("regret", "loss"))
        self.last += logs.get("eval_seconds", 0.0)
        record = {"step": state.global_step, "segment": self.segment}
        self._write(record | {name.replace("/", "_"): number(v) for name, v in logs.items()})

    def _write(self, record: Mapping[str, Any]) -> None:
        append(self.path, json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def _record(self, state, logs: Mapping[str, Any]) -> dict[str, Any]:
        now = self.clock()
        record: dict[str, Any] = {"step": state.global_step, "segment": self.segment}
        for name, value in logs.items():
            record.setdefault(name.replace("/", "_"), number(value))
        tokens = record.get("num_tokens")
        if tokens is not None and self.last_tokens is not None and now > self.last:
            record["tokens_per_second"] = (tokens - self.last_tokens) / (now - self.last)
        self.last_tokens = tokens if tokens is not None else self.last_tokens
        record["step_seconds"] = now - self.last
        record["seconds"] = now - self.started
        self.last = now
        return record

    def _progress(self, record: Mapping[str, Any], max_steps: int) -> Progress:
        done = record["step"] - self.first_step
        left = max_steps - record["step"]
        return Progress(
            step=record["step"],
            max_steps=max_steps,
            loss=record.get("loss"),
            reward=record.get("reward"),
            invalid=invalid_share(record),
            regret=self.regret,
            eval_loss=self.eval_loss,
            mean_length=record.get("completions_mean_length"),
            tokens_per_second=record.get("tokens_per_second"),
            seconds=record["seconds"],
            eta=record["seconds"] / done * left if done > 0 else None,
        )


class CompletionLog:
    """completions.csv: a header once, then rows, flushed with every call. For rank 0 only.

    Several `rewards` have a column each; `more` are names of others behind them.
    """

    def __init__(
        self, path: Path, segment: int, rewards: Sequence[str] = (), more: Sequence[str] = ()
    ):
        self.path, self.segment = path, segment
        own = [f"reward_{name}" for name in rewards] if len(rewards) > 1 else []
        self.columns = (*COLUMNS, *own, *more)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare()
        except OSError as error:
            if isinstance(error, RunFolderError):
                raise
            raise RunFolderError(
                f"completion_log_path {path} cannot be written: {error.strerror}",
                hint="choose another path, or log_completions = false",
            ) from error

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows: dicts with the names in `columns`; others are left out."""
        lines = [self._line({**row, "segment": self.segment}) for row in rows]
        append(self.path, "".join(lines))

    def _line(self, row: Mapping[str, Any]) -> str:
        text = io.StringIO()
        # Only with this line end does csv quote cells that hold a bare carriage return.
        csv.writer(text, lineterminator="\r\n").writerow([cell(row.get(n)) for n in self.columns])
        return text.getvalue().removesuffix("\r\n") + "\n"

    def _prepare(self) -> None:
        header = ",".join(self.columns)
        if not self.path.exists() or self.path.stat().st_size == 0:
            append(self.path, header + "\n")
            return
        quoted, last = False, b"\n"
        with self.path.open("rb") as file:
            found = file.readline().decode("utf-8", errors="replace").strip()
            while block := file.read(1 << 20):
                quoted ^= block.count(b'"') % 2 == 1
                last = block[-1:]
        if found != header:
            raise RunFolderError(
                f"completion_log_path {self.path} holds other columns: {found[:80]}",
                hint=f"name a new file; its columns will be {header}",
            )
        if quoted or last != b"\n":  # a kill cut the last row off: close it, keep its text
            append(self.path, ('"' if quoted else "") + "\n")


def number(value: Any) -> Any:
    """Return `value` as strictly valid JSON has it: NaN and infinities are null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def cell(value: Any) -> Any:
    """Return `value` as a CSV cell: None and NaN are empty."""
    value = number(value)
    return "" if value is None else value
