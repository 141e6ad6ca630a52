"""exact, numeric, regex: whether the answer is the row's, as text, as a number, by a pattern.

The answer is what stands inside the last pair of `answer_tags`, else the whole final message. Where
a row has no `answer` to compare with, the completion is masked.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence

from gptoss_tools.chat.actions import fold
from gptoss_tools.errors import ConfigError
from gptoss_tools.rewards.answered import Answered, batch_reward, reward
from gptoss_tools.settings import RewardSettings

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    # A sign behind a word or a number joins: `3-4`, `answer-5`.
    rf"(?:(?<![\w.)])(?P<sign>[-+\u2212]))?[$€£]?(?<![\d.])"
    rf"(?:(?P<whole>\d+)\s+(?=\d+/\d))?(?P<number>{_DIGITS})"
    rf"(?P<exponent>e[-+]?\d{{1,3}})?(?:/(?P<below>{_DIGITS}))?",
    re.IGNORECASE,
)


@reward("exact", columns=("answer",), reads=("answer_tags",))
def exact(answered: Answered, settings: RewardSettings) -> float | None:
    """1 if the answer is the row's `answer`, white space and upper case aside, else 0."""
    wanted = reference(answered)
    if wanted is None:
        return None
    return float(fold(answered.answer(settings.answer_tags)) == fold(wanted))


@reward("numeric", columns=("answer",), reads=("answer_tags", "numeric_tolerance"))
def numeric(answered: Answered, settings: RewardSettings) -> float | None:
    """1 if the answer's last number is that of the row's `answer`, else 0.

    Of both, what follows the last `####` is read, as GSM8K writes it, where there is one.
    """
    wanted = last_number(reference(answered) or "")
    if wanted is None:
        return None
    found = last_number(answered.answer(settings.answer_tags))
    near = settings.numeric_tolerance
    return float(found is not None and math.isclose(found, wanted, rel_tol=near, abs_tol=near))


@batch_reward("regex", reads=("answer_pattern", "answer_tags"))
class Regex:
    """1 if the whole answer matches `answer_pattern`, else 0.

    Where the pattern has a group and the row an `answer`, the group must be that, white space and
    upper case aside.
    """

    def __init__(self, settings: RewardSettings) -> None:
        if settings.answer_pattern is None:
            raise ConfigError("the reward regex needs answer_pattern", hint="--answer-pattern")
        try:
            self.pattern = re.compile(settings.answer_pattern)
        except re.error as error:
            raise ConfigError(
                f"answer_pattern {settings.answer_pattern!r} is not a regular expression: {error}"
            ) from error
        self.tags = settings.answer_tags

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        return [float(self._matches(answered)) for answered in answers]

    def _matches(self, answered: Answered) -> bool:
        match, wanted = self.pattern.fullmatch(answered.answer(self.tags)), reference(answered)
        if match is None or not self.pattern.groups or wanted is None:
            return match is not None
        return fold(match[1] or "") == fold(wanted)


def reference(answered: Answered) -> str | None:
    """The row's `answer` as text, None where it has none."""
    cell = answered.row.get("answer")
    return None if cell is None or not str(cell).strip() else str(cell)


def last_number(text: str) -> float | None:
    """The last number in a text, after the last `####` if there is one; None without a finite one.

    Reads 1,234.5 and 1234.5, signs, .5, 3e8, 3/4 and 2 3/4; skips currency signs, and a percent
    sign says nothing. A comma separates thousands only before three digits.
    """
    last = deque(_NUMBER.finditer(text.rpartition("####")[2]), maxlen=1)
    if not last:
        return None
    digits = {name: (part or "").replace(",", "") for name, part in last[0].groupdict().items()}
    value = float(digits["number"] + digits["exponent"])
    if digits["below"]:
        value = value / float(digits["below"]) if float(digits["below"]) else math.nan
    value += float(digits["whole"] or 0)
    value = value if digits["sign"] in ("", "+") else -value
    return value if math.isfinite(value) else None
