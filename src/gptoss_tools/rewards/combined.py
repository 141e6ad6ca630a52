"""Rewards by name, and several of them added up.

Importing this module registers the built-in rewards.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tools import registry
from gptoss_tools.errors import GptossError, RewardError
from gptoss_tools.rewards import decision, matching, overlap, rubric, structure  # noqa: F401
from gptoss_tools.rewards.answered import Answered, RewardKind
from gptoss_tools.rewards.signatures import adapt
from gptoss_tools.settings import RewardSettings


@dataclass(frozen=True)
class Scores:
    """Rewards of a batch: the weighted sums, and by name what was summed, unweighted."""

    total: list[float | None]
    apart: dict[str, list[float | None]]


class Rewards:
    """The rewards that `settings` choose; raises ConfigError for what cannot be one."""

    def __init__(self, settings: RewardSettings) -> None:
        found = [find(name) for name in settings.reward]
        self.kinds = dict(zip(names_of(settings), found, strict=True))
        weights = settings.reward_weights or [1.0] * len(found)
        self.weights = dict(zip(self.kinds, weights, strict=True))
        self._scorers = {name: kind.build(settings) for name, kind in self.kinds.items()}

    def __call__(self, answers: Sequence[Answered]) -> Scores:
        """Score all answers at once; a single None among its rewards masks a completion."""
        apart = {name: self._score(name, answers) for name in self.kinds}
        total = [self._sum([apart[name][i] for name in apart]) for i in range(len(answers))]
        return Scores(total, apart)

    def figures(self) -> dict[str, float]:
        """What the rewards say of themselves after a batch, for the log."""
        out: dict[str, float] = {}
        for scorer in self._scorers.values():
            if (own := getattr(scorer, "figures", None)) is not None:
                out |= own()
        return out

    def _score(self, name: str, answers: Sequence[Answered]) -> list[float | None]:
        try:
            found = list(self._scorers[name](answers))
            scores = [None if s is None or math.isnan(s) else float(s) for s in found]
        except GptossError:
            raise
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"the reward {name} failed: {type(error).__name__}: {error}"
            ) from error
        if len(scores) != len(answers):
            raise RewardError(
                f"the reward {name} returned {len(scores)} rewards for {len(answers)} answers"
            )
        if any(s is not None and math.isinf(s) for s in scores):
            raise RewardError(
                f"the reward {name} returned an infinite reward",
                hint="return None to mask a completion",
            )
        return scores

    def _sum(self, scores: Sequence[float | None]) -> float | None:
        total = 0.0
        for weight, score in zip(self.weights.values(), scores, strict=True):
            if score is None:
                return None
            total += weight * score
        return total


def find(name: str) -> RewardKind:
    """A reward by its name, or a user's own at `package.module:function`; ConfigError if none."""
    part = registry.get("reward", name)
    return getattr(part, "reward_kind", None) or adapt(part, name)


def all_kinds() -> list[RewardKind]:
    """Every registered reward, by name."""
    return [find(name) for name in registry.names("reward")]


def needed(settings: RewardSettings) -> dict[str, Any]:
    """What tables must have for the chosen rewards, as `load_table` takes it."""
    kinds = {name: find(name) for name in settings.reward}
    columns: dict[str, str] = {}
    for name, kind in kinds.items():
        columns |= {column: name for column in kind.columns if column not in columns}
    return {"values": any(kind.values for kind in kinds.values()), "columns": columns}


def reads_only_values(settings: RewardSettings) -> bool:
    """Whether no other column of a table matters: `decision` alone."""
    return settings.reward == ["decision"]


def own_sources(settings: RewardSettings) -> dict[str, str]:
    """The sha256 of the file that holds each own reward, by its name, where there is one file.

    A script that is itself what runs is left out: it says more than what answers earn.
    """
    found: dict[str, str] = {}
    for name in settings.reward:
        module = name.partition(":")[0] if ":" in name else "__main__"
        path = getattr(sys.modules.get(module), "__file__", None)
        if module != "__main__" and path and Path(path).is_file():
            found[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return found


def names_of(settings: RewardSettings) -> list[str]:
    """The rewards' names in logs: an own function's without its module, where that is enough."""
    short = [name.rpartition(":")[2] for name in settings.reward]
    pairs = zip(short, settings.reward, strict=True)
    return [one if short.count(one) == 1 else name.replace(":", ".") for one, name in pairs]
