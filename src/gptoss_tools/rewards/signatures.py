"""A user's own function as a reward, whichever of the three known forms it has.

They are told apart by the names of their parameters, never by trying them out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptoss_tools.data.action_rewards import settle
from gptoss_tools.errors import ConfigError, GptossError, RewardError
from gptoss_tools.rewards.answered import (
    FORM,
    Answered,
    RewardKind,
    Scorer,
    first_line_of,
    one_by_one,
)
from gptoss_tools.settings import RewardSettings

DECISION = ("decision", "rewards_K", "completion", "row")
ANSWERED = ("answered", "settings")
BATCH = ("prompts", "completions")
OF_EVERY_ROW = ("row", "n_actions")  # numbers that no table needs to hold
DECISION_FORM = f"f({', '.join(DECISION)})"
BATCH_FORM = f"f({', '.join(BATCH)}, **columns) -> list"


def adapt(found: Any, address: str) -> RewardKind:
    """The kind of an own reward; ConfigError, showing the forms, for parameters of no form."""
    name = address.rpartition(":")[2]
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        parameters = {}
    kinds = {p.kind for p in parameters.values()}
    names = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    needed = [n for n in names if parameters[n].default is inspect.Parameter.empty]
    summary = first_line_of(found)
    if inspect.Parameter.POSITIONAL_ONLY not in kinds and not inspect.iscoroutinefunction(found):
        if "completions" in names:
            columns = tuple(n for n in needed if n not in (*BATCH, *OF_EVERY_ROW))
            takes = None if inspect.Parameter.VAR_KEYWORD in kinds else names
            return RewardKind(name, summary, columns, (), _together(found, name, takes))
        if "answered" in names and set(needed) <= set(ANSWERED):
            build = one_by_one(_calling(found, names, _parts_answered), found)
            return RewardKind(name, summary, (), (), build)
        if needed and set(needed) <= set(DECISION):
            build = one_by_one(_deciding(found, names), found, DECISION_FORM)
            return RewardKind(name, summary, (), ("invalid_reward",), build)
    raise ConfigError(
        f"reward {address!r} takes ({', '.join(map(str, parameters.values()))}), "
        "which is none of a reward's forms",
        hint=f"write {FORM}, {DECISION_FORM} or {BATCH_FORM}, with these names",
    )


def _parts_answered(answered: Answered, settings: RewardSettings) -> dict[str, Any]:
    return {"answered": answered, "settings": settings}


def _parts_decided(answered: Answered, settings: RewardSettings) -> dict[str, Any]:
    return {name: getattr(answered, name) for name in DECISION}


def _calling(
    function: Callable[..., float | None], names: Sequence[str], parts: Callable[..., dict]
) -> Callable[[Answered, RewardSettings], float | None]:
    def call(answered: Answered, settings: RewardSettings) -> float | None:
        given = parts(answered, settings)
        return function(**{name: given[name] for name in names if name in given})

    return call


def _deciding(
    function: Callable[..., float | None], names: Sequence[str]
) -> Callable[[Answered, RewardSettings], float | None]:
    """Where it gives no score, an invalid answer to a row with actions counts as in `decision`."""
    score = _calling(function, names, _parts_decided)

    def call(answered: Answered, settings: RewardSettings) -> float | None:
        found = score(answered, settings)
        has_actions = len(answered.rewards_K) > 0
        invalid = settings.invalid_reward if has_actions else "mask"
        return settle(found, answered.decision, invalid, answered.rewards_K)

    return call


def _together(
    function: Callable[..., Sequence[float | None]], name: str, takes: Sequence[str] | None
) -> Callable[[RewardSettings], Scorer]:
    """Calls of TRL's form: one list per column; completions are the final messages."""

    def score(answers: Sequence[Answered]) -> list[float | None]:
        rows: list[Mapping[str, Any]] = [answered.row for answered in answers]
        known = dict.fromkeys(column for row in rows for column in row if column != "prompt")
        given: dict[str, Any] = {column: [row.get(column) for row in rows] for column in known}
        given["prompts"] = [answered.prompt for answered in answers]
        given["completions"] = [answered.text for answered in answers]
        try:
            return list(function(**{n: v for n, v in given.items() if takes is None or n in takes}))
        except GptossError:
            raise
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"the reward function {name} failed: {type(error).__name__}: {error}",
                hint=f"it is called as {BATCH_FORM}, with one list per column",
            ) from error

    return lambda settings: score
