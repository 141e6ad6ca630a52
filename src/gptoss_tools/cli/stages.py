"""Stages that are gptoss command lines, run as a user would run them, in processes of their own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console import out
from ..core.history import read_metrics
from ..errors import GptossError

PATIENCE = 600.0  # seconds an interrupted stage may take to save; a second Ctrl-C ends it at once


class Stages:
    """Runs command lines one after another and remembers how long each took.

    `config` is the settings file of all of them (None: ./gptoss.toml, if it is there).
    """

    def __init__(
        self, config: str | Path | None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.config = None if config is None else str(config)
        self.environment = environment
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, *arguments: str) -> dict[str, Any]:
        """Run `gptoss ARGUMENTS --json`; return its document.

        Raises GptossError with the exit code of a command that fails, KeyboardInterrupt, once the
        command has saved and ended, when this process is interrupted.
        """
        from ..remote.child import run_child

        line, started = self._announce(arguments)
        try:
            code, stdout = run_child(line, None, lambda piece: None, PATIENCE, self.environment)
        finally:
            self._account(stage, started)
        if code:
            for problem in _problems(stdout):
                out.warning(problem)
            code = code if code > 0 else 128 - code  # killed by a signal, as shells say it
            error = GptossError(f"`gptoss {shlex.join(arguments)}` ended with exit code {code}")
            error.exit_code = code
            raise error
        return json.loads(stdout)

    def kill_at(self, stage: str, step: int, metrics: Path, *arguments: str) -> int:
        """Run a training and kill it without warning once `step` is done; return the step."""
        line, started = self._announce(arguments)
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=self.environment)
        try:
            while process.poll() is None and _steps(metrics) < step:
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        self._account(stage, started)
        reached = _steps(metrics)
        if reached < step:
            raise GptossError(f"`gptoss {shlex.join(arguments)}` stopped at step {reached}")
        out.notice(f"killed (SIGKILL) after step {reached}")
        return reached

    def _announce(self, arguments: Sequence[str]) -> tuple[list[str], float]:
        """Show the command line; return it in full, and the time."""
        line = [*arguments, *(["--config", self.config] if self.config else [])]
        out.notice(f"$ gptoss {shlex.join(line)}")
        quiet = ["--quiet"] if out.mode == "quiet" else []
        program = [sys.executable, "-m", "gptoss_tools"]
        return [*program, *line, "--json", *quiet], time.monotonic()

    def _account(self, stage: str, started: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started


def _problems(stdout: str) -> list[str]:
    """Return what check-data found, one line each."""
    try:
        found = json.loads(stdout)["problems"]
    except (ValueError, KeyError, TypeError):
        return []
    return [
        " ".join(f"{name} {one[name]}" for name in one if one[name] is not None) for one in found
    ]


def _steps(metrics: Path) -> int:
    """Return the last step that the run has logged in full."""
    trained = [record["step"] for record in read_metrics(metrics) if "loss" in record]
    return trained[-1] if trained else 0
