"""Completion -> the action it chose, or the reason why it chose none.

Only the final channel counts: a number in the analysis is a thought, not an answer. Leaves out what
an action is worth (data.action_rewards).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gptoss_tools.chat.completions import Completion
from gptoss_tools.errors import ConfigError

DEFAULT_PATTERN = r"\[([0-9]+)\]"
_DEFAULT = re.compile(DEFAULT_PATTERN)
_BRACKETS = re.compile(r"\[([^\[\]]*[^\[\]\s][^\[\]]*)\]")
_INTEGER = re.compile(r"[0-9]{1,18}")


class Reason(StrEnum):
    """What became of a completion; everything but OK is an invalid answer."""

    OK = "ok"
    NO_FINAL = "no_final"
    TRUNCATED = "truncated"
    UNPARSABLE = "unparsable"
    OUT_OF_RANGE = "out_of_range"


INVALID_REASONS = tuple(reason for reason in Reason if reason is not Reason.OK)


@dataclass(frozen=True)
class Decision:
    """The chosen action (0-based), None unless `reason` is OK."""

    action: int | None
    reason: Reason


def compile_pattern(pattern: str | None) -> re.Pattern[str]:
    """Check and compile an action pattern: a regular expression with one group, the action index.

    None is the default, `[k]`. Raises ConfigError for a broken pattern or any other group count.
    """
    if pattern is None:
        return _DEFAULT
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"action_pattern {pattern!r} is not a regular expression: {error}",
            hint=f"the default is {DEFAULT_PATTERN}",
        ) from error
    if compiled.groups != 1:
        raise ConfigError(
            f"action_pattern {pattern!r} has {compiled.groups} groups, it needs exactly one",
            hint="put the action index in ( ) and write other groups as (?: )",
        )
    return compiled


def fold(name: str) -> str:
    """An action's name as it is compared: white space as single spaces, no upper case."""
    return " ".join(name.split()).casefold()


def parse_action(
    completion: Completion,
    n_actions: int | None,
    pattern: str | re.Pattern[str] | None = None,
    names: Sequence[str] | None = None,
) -> Decision:
    """Read the action from the last final message.

    The whole content, without surrounding white space, must match `pattern` (default `[k]`), and
    its group must be an integer below `n_actions` (None: any integer). With `names` (None or empty:
    numbered actions) the group must be one of them instead, by `fold`; the default is then the name
    alone or in square brackets. Numbers are no answers beside names: `[2]` would mean two things as
    soon as a name is a number. A generation that hit the length limit is truncated whatever it
    holds: what would have followed is unknown. Without anything to choose (`n_actions` 0), every
    final message is OK.
    """
    if completion.stop == "none":
        return Decision(None, Reason.TRUNCATED)
    final = completion.final
    if final is None:
        return Decision(None, Reason.NO_FINAL)
    if n_actions == 0:
        return Decision(None, Reason.OK)
    if not isinstance(pattern, re.Pattern):
        pattern = compile_pattern(pattern)
    if names:
        return _named(final.strip(), pattern, [fold(name) for name in names])
    match = pattern.fullmatch(final.strip())
    if match is None or match.group(1) is None:
        return Decision(None, Reason.UNPARSABLE)
    digits = match.group(1).strip()
    if not digits.isascii() or not digits.isdigit():
        return Decision(None, Reason.UNPARSABLE)
    # Python refuses to convert thousands of digits; any such number is out of range anyway.
    digits = digits.lstrip("0") or "0"
    if not _INTEGER.fullmatch(digits) or not (n_actions is None or int(digits) < n_actions):
        return Decision(None, Reason.OUT_OF_RANGE)
    return Decision(int(digits), Reason.OK)


def _named(final: str, pattern: re.Pattern[str], names: list[str]) -> Decision:
    if pattern == _DEFAULT:
        # The whole text first: a name may itself begin and end with brackets.
        inside = final[1:-1] if final.startswith("[") and final.endswith("]") else final
        for said in (fold(final), fold(inside)):
            if said in names:
                return Decision(names.index(said), Reason.OK)
        in_brackets = _BRACKETS.fullmatch(final) is not None
        return Decision(None, Reason.OUT_OF_RANGE if in_brackets else Reason.UNPARSABLE)
    match = pattern.fullmatch(final)
    said = fold(match.group(1) or "") if match else ""
    if not said:
        return Decision(None, Reason.UNPARSABLE)
    if said not in names:
        return Decision(None, Reason.OUT_OF_RANGE)
    return Decision(names.index(said), Reason.OK)
