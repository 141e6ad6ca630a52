"""Which answers can be written down after a completion's reasoning, and what each of them earns.

One answer is tokens up to and with the one that ends it: `[3]<|return|>`. After `[3]<|end|>` the
model may go on and think better of it; it is written down all the same, with what it earns if not.
Whatever else could be said, with white space, a leading zero or other tokens for the same text, is
not; the estimator in `exact_actions` leaves that, and second thoughts, to what was drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from gptoss_tools.chat.actions import Decision, Reason, parse_action
from gptoss_tools.chat.completions import Completion, HarmonyTokens, Message, parse_completion
from gptoss_tools.data.action_rewards import InvalidReward, settle
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.training.answer_tree import ABSENT

Answer = tuple[int, list[int]]
"""An action, and the tokens that say it, with the one that ends the message."""


def written_answers(
    tokenizer: Any, pattern: re.Pattern[str], n_actions: int, names: Sequence[str] = ()
) -> list[Answer]:
    """Return every answer that is written down, as the tokenizer writes it; none begins another.

    For each action its name (or number) in brackets, alone, and put in the place of the pattern's
    group; of these the ones that are read as this action, with each token that can end a message.
    Raises ConfigError if there is none.
    """
    tokens = HarmonyTokens.from_tokenizer(tokenizer)
    ends = (*tokens.stops, tokens.end)
    found: dict[tuple[int, ...], int] = {}
    for action in range(n_actions):
        label = names[action] if names else str(action)
        literal = re.sub(r"\((?!\?).*\)", lambda _, label=label: label, pattern.pattern)
        for text in (f"[{label}]", label, re.sub(r"\\(.)", r"\1", literal)):
            ids = list(tokenizer(text=text, add_special_tokens=False)["input_ids"])
            read = Completion((Message("final", _decode(tokenizer, ids)),), "return")
            plain = not set(ids) & set(ends)
            if plain and parse_action(read, n_actions, pattern, names).action == action:
                for end in ends:
                    found.setdefault((*ids, end), action)
    if not found:
        raise ConfigError(
            f"action_gradient exact can write no answer that action_pattern {pattern.pattern!r} "
            "reads",
            hint="use a pattern of plain text around its group, or action_gradient sampled",
        )
    return [(action, list(ids)) for ids, action in found.items()]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def answer_begins(ids: Sequence[int], tokenizer: Any) -> int | None:
    """Return how many tokens come before the answer, None if the completion never comes to it.

    The first place where the final message is open and empty: a function of what stands before it.
    """
    tokens = HarmonyTokens.from_tokenizer(tokenizer)
    for place, token in enumerate(ids):
        if token == tokens.message:
            ended = [*ids[: place + 1], tokens.return_]
            if parse_completion(ended, tokens, partial(_decode, tokenizer)).final == "":
                return place + 1
    return None


def rewards_of(row: Mapping[str, Any]) -> list[float]:
    """Return the rewards of a row's actions; DataError where one is not known."""
    found = [row.get(f"reward_action_{k}") for k in range(row["n_actions"])]
    known: list[float] = []
    for action, value in enumerate(found):
        if value is None or math.isnan(value):
            raise DataError(
                f"row {row['row'] + 1} has no reward for action {action}, and action_gradient "
                "exact needs them all",
                hint="use action_gradient sampled, or calc-reward --missing drop",
            )
        known.append(float(value))
    return known


def first_unknown(dataset: Any) -> dict[str, Any]:
    """Return the first row of a table that lacks a reward, or just the first one."""
    counts = np.asarray(dataset["n_actions"][:])
    place = len(counts)
    for action in range(int(counts.max())):
        values = np.asarray(dataset[f"reward_action_{action}"][:], dtype=float)
        place = min([place, *np.flatnonzero(np.isnan(values) & (counts > action))[:1]])
    return dataset[int(place % len(counts))]


def worst_of(invalid_reward: InvalidReward, rewards_K: Sequence[float]) -> float:
    """Return what an invalid answer earns; ConfigError where that is nothing at all."""
    earned = settle(None, Decision(None, Reason.UNPARSABLE), invalid_reward, rewards_K)
    if earned is None:
        raise ConfigError(
            "action_gradient exact needs an invalid_reward: answers that are masked have no "
            "expected reward",
            hint="invalid_reward worst, or a number",
        )
    return earned


@dataclass(frozen=True)
class Appraisal:
    """A completion as the estimator sees it.

    `decided` tokens come before its answer. `gains` are what the answers earn above `worst`; `rest`
    is what it earned itself above what was written down for it, or above `worst` if nothing was:
    then it is `odd`.
    """

    decided: int
    answers: list[list[int]]
    gains: list[float]
    worst: float
    rest: float
    odd: bool


def appraise(
    ids: list[int],
    reward: float,
    begins: int | None,
    written: Sequence[Answer],
    rewards_K: Sequence[float],
    worst: float,
    longest: int,
) -> Appraisal:
    """Cut a completion at its answer; answers that would not end within `longest` tokens are out.

    Those are truncated, and so invalid: what they earn above `worst` is nothing.
    """
    if begins is None:
        return Appraisal(len(ids), [], [], worst, reward - worst, False)
    fitting = [(action, answer) for action, answer in written if begins + len(answer) <= longest]
    said = [action for action, answer in fitting if ids[begins : begins + len(answer)] == answer]
    known = rewards_K[said[0]] if said else worst
    return Appraisal(
        begins,
        [answer for _, answer in fitting],
        [rewards_K[action] - worst for action, _ in fitting],
        worst,
        reward - known,
        not said,
    )


def tensors(found: Sequence[Appraisal], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return decided [B], answers [B, J, L] and gains [B, J], as `answer_tree.score` reads them."""
    many = max(1, *(len(a.answers) for a in found), 1)
    depth = max(1, *(len(answer) for a in found for answer in a.answers), 1)
    answers = torch.full((len(found), many, depth), ABSENT)
    gains = torch.zeros(len(found), many)
    for row, appraisal in enumerate(found):
        for place, answer in enumerate(appraisal.answers):
            answers[row, place, : len(answer)] = torch.tensor(answer)
        gains[row, : len(appraisal.gains)] = torch.tensor(appraisal.gains)
    decided = torch.tensor([a.decided for a in found])
    return {
        n: t.to(device) for n, t in {"decided": decided, "answers": answers, "gains": gains}.items()
    }
