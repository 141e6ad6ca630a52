"""One answered prompt, and how a reward for it is registered.

A reward is one function `f(answered, settings) -> float | None` under `@reward`, or, where answers
are better looked at together (a judge that is asked over the network), a class under
`@batch_reward`. None takes the completion out of the training step. The registry holds functions
and classes themselves, so that executing a module again replaces them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tools import registry
from gptoss_tools.chat.actions import Decision
from gptoss_tools.chat.completions import Completion
from gptoss_tools.errors import DataError, RewardError
from gptoss_tools.settings import RewardSettings

Scorer = Callable[[Sequence["Answered"]], "list[float | None]"]
"""Rewards of a batch of answers, one each; None masks a completion."""

FORM = "f(answered, settings)"


@dataclass(frozen=True)
class Answered:
    """A prompt, its completion by channel, and the row it comes from.

    `decision` and `rewards_K` belong to rows with values per action; elsewhere the decision has no
    action and there are no rewards. `row` holds the prepared table's columns by name.
    """

    prompt: str
    completion: Completion
    row: Mapping[str, Any]
    decision: Decision
    rewards_K: Sequence[float] = ()

    @property
    def text(self) -> str:
        """What the model said to the user: its final message, empty if it came to none.

        A generation that hit the length limit came to none: what would have followed is unknown.
        """
        return "" if self.completion.stop == "none" else self.completion.final or ""

    def answer(self, tags: Sequence[str]) -> str:
        """The text between the last pair of `tags`, all of `text` without one; stripped."""
        before, closed, _ = self.text.rpartition(tags[1])
        _, opened, inside = before.rpartition(tags[0])
        return (inside if closed and opened else self.text).strip()


@dataclass(frozen=True)
class RewardKind:
    """A registered reward: which columns a table must have for it, which settings it reads.

    `values` says that it needs the reward of every action too.
    """

    name: str
    summary: str
    columns: tuple[str, ...]
    reads: tuple[str, ...]
    build: Callable[[RewardSettings], Scorer]
    values: bool = False


def reward(
    name: str, *, columns: Sequence[str] = (), reads: Sequence[str] = (), values: bool = False
) -> Callable:
    """Register a function of one answer, `f(answered, settings) -> float | None`."""

    def keep(function: Callable[[Answered, RewardSettings], float | None]) -> Callable:
        return _register(name, function, columns, reads, one_by_one(function), values)

    return keep


def batch_reward(name: str, *, columns: Sequence[str] = (), reads: Sequence[str] = ()) -> Callable:
    """Register a class `C(settings)` whose instances are called with all answers of a batch.

    If an instance has a method `figures() -> dict[str, float]`, what it returns after a step's last
    batch is logged among the step's metrics.
    """

    def keep(made: Callable[[RewardSettings], Scorer]) -> Callable:
        return _register(name, made, columns, reads, made)

    return keep


def one_by_one(
    function: Callable[[Answered, RewardSettings], float | None],
    named: Any = None,
    form: str = FORM,
) -> Callable[[RewardSettings], Scorer]:
    """A function of one answer as a `build`; an error in it names `named`, the row and `form`."""
    name = getattr(named or function, "__name__", repr(named or function))

    def build(settings: RewardSettings) -> Scorer:
        def score(answered: Answered) -> float | None:
            try:
                found = function(answered, settings)
                if found is not None and math.isinf(found):
                    raise DataError("the reward is infinite")
            except (Exception, SystemExit) as error:  # a script may end at once
                place = answered.row.get("row")
                where = "an answer" if place is None else f"row {place + 1}"
                raise RewardError(
                    f"the reward function {name} failed on {where}: "
                    f"{type(error).__name__}: {error}",
                    hint=f"it is called as {form}",
                ) from error
            return found

        return lambda answers: [score(answered) for answered in answers]

    return build


def first_line_of(documented: Any) -> str:
    """The first line of a docstring, empty without one."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _register(
    name: str,
    part: Any,
    columns: Sequence[str],
    reads: Sequence[str],
    build: Callable[[RewardSettings], Scorer],
    values: bool = False,
) -> Any:
    registry.register("reward", name)(part)
    part.reward_kind = RewardKind(
        name, first_line_of(part), tuple(columns), tuple(reads), build, values
    )
    return part
