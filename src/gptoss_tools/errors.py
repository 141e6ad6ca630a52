"""Every error a user can cause or meet, each with its exit code.

A message is one sentence that names the file, row, column or setting at fault; `hint` says what to
do next. Only `cli.app.main` catches these. To add one: subclass, set `exit_code`, also derive from
the built-in exception a library user would expect.
"""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """What another library's error says, short enough to stand in one sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class GptossError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint

    def advise(self, more: str) -> None:
        """Add to the hint what only the command knows that was at work: how it goes on, say."""
        self.hint = f"{self.hint}; {more}" if self.hint else more

    def __reduce__(self):
        return type(self), (str(self), self.hint)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of forty frames of libraries."""
        return [f"{type(self).__name__}: {self}", *([f"hint: {self.hint}"] if self.hint else [])]


class ConfigError(GptossError, ValueError):
    """A flag, variable or TOML key is wrong (exit code 2)."""

    exit_code = 2


class DataError(GptossError, ValueError):
    """A table, row, column or prompt is wrong (exit code 2)."""

    exit_code = 2


class RunFolderError(GptossError, OSError):
    """A run folder or an output is in the way, missing or incomplete (exit code 2)."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[0])


class MachineError(GptossError, RuntimeError):
    """The machine lacks something: a GPU, memory, a package, a credential (exit code 3)."""

    exit_code = 3


class TrainingError(GptossError, RuntimeError):
    """Training started and could not go on (exit code 1)."""


class RewardError(TrainingError):
    """What an answer earns could not be told: an own function failed, a judge did not answer."""
