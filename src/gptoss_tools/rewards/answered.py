"""One answered prompt, and how a reward for it is registered.

A reward is one function `f(answered, settings) -> float | None` under `@reward`, or, where answers
are better looked at together (a judge that is asked over the network), a class under
`@batch_reward`. None takes the completion out of the training step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tools import registry
from gptoss_tools.core.actions import Decision
from gptoss_tools.core.completions import Completion
from gptoss_tools.settings import RewardSettings

Scorer = Callable[[Sequence["Answered"]], "list[float | None]"]
"""Rewards of a batch of answers, one each; None masks a completion."""


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
        """What the model said to the user: its final message, empty if it came to none."""
        return self.completion.final or ""


@dataclass(frozen=True)
class RewardKind:
    """A registered reward: which columns a table must have for it, which settings it reads."""

    name: str
    summary: str
    columns: tuple[str, ...]
    reads: tuple[str, ...]
    build: Callable[[RewardSettings], Scorer]


def reward(name: str, *, columns: Sequence[str] = (), reads: Sequence[str] = ()) -> Callable:
    """Register a function of one answer, `f(answered, settings) -> float | None`."""

    def keep(function: Callable[[Answered, RewardSettings], float | None]) -> Callable:
        def build(settings: RewardSettings) -> Scorer:
            return lambda answers: [function(answered, settings) for answered in answers]

        _register(name, function, columns, reads, build)
        return function

    return keep


def batch_reward(name: str, *, columns: Sequence[str] = (), reads: Sequence[str] = ()) -> Callable:
    """Register a class `C(settings)` whose instances are called with all answers of a batch.

    If an instance has a method `figures() -> dict[str, float]`, what it returns after each batch is
    logged among the step's metrics.
    """

    def keep(made: Callable[[RewardSettings], Scorer]) -> Callable:
        _register(name, made, columns, reads, made)
        return made

    return keep


def _register(
    name: str,
    documented: Any,
    columns: Sequence[str],
    reads: Sequence[str],
    build: Callable[[RewardSettings], Scorer],
) -> None:
    summary = (inspect.getdoc(documented) or "").partition("\n")[0]
    kind = RewardKind(name, summary, tuple(columns), tuple(reads), build)
    registry.register("reward kind", name)(kind)
