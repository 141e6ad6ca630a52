"""From TRL's batched reward call to one decision, one reward and one record per completion.

TRL hands over text without special tokens, in which analysis and final run together; everything
here is read from `completion_ids`. Leaves out what an answer means (chat.actions), what it is worth
(rewards) and where records are written (the caller's sink).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

from gptoss_tools.chat.actions import INVALID_REASONS, Reason, compile_pattern, parse_action
from gptoss_tools.chat.families import chat_of
from gptoss_tools.rewards import Answered
from gptoss_tools.rewards.combined import Rewards, Scores
from gptoss_tools.settings import RewardSettings, TrainSettings

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""One completion: row (0-based table row), prompt, completion (Harmony markers kept), action,
reward, target_action, reason, regret, phase, of several rewards each as reward_NAME; the trainer
adds step and micro_step."""


class DecisionReward:
    """TRL reward function: list of floats, None where the completion is to be masked.

    `records` holds the last call's records in order; the trainer takes them from there. `phases`
    are the dataset's: with two or more, metrics come by phase too. The settings of rewards come as
    `settings`, or by name.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: RewardSettings | None = None,
        action_pattern: str | None = None,
        phases: Sequence[str] = (),
        **named: Any,
    ):
        settings = settings or RewardSettings(**named)
        self.rewards = Rewards(settings)
        reads = {name for kind in self.rewards.kinds.values() for name in kind.reads}
        self.invalid_reward = settings.invalid_reward if "invalid_reward" in reads else None
        self.pattern = compile_pattern(action_pattern)
        self.chat = chat_of(tokenizer)  # the trainer's own once there is a model
        self.labels = phase_labels(phases)
        self.records: list[Record] = []
        self._warned = False
        # TRL names its metrics after it.
        self.__name__ = "sum" if len(self.rewards.kinds) > 1 else next(iter(self.rewards.kinds))

    @classmethod
    def from_settings(
        cls,
        settings: TrainSettings,
        tokenizer: PreTrainedTokenizerBase,
        phases: Sequence[str] = (),
    ) -> DecisionReward:
        """Build it from the settings of rewards and `action_pattern`."""
        return cls(
            tokenizer,
            settings=settings,
            action_pattern=settings.action_pattern,
            phases=phases,
        )

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score a batch; `columns` are the dataset's, one list per column, and TRL's extras."""
        names = [name for name, values in columns.items() if _is_column(values, len(prompts))]
        rows = [{name: columns[name][i] for name in names} for i in range(len(prompts))]
        read = zip(prompts, completion_ids, rows, strict=True)
        answers = [self._read(prompt, ids, row) for prompt, ids, row in read]
        scores = self.rewards(answers)
        self._warn_of_nothing(scores)
        texts = map(self.chat.decode, completion_ids)
        self.records = [
            record_of(answer, text, scores, place)
            for place, (answer, text) in enumerate(zip(answers, texts, strict=True))
        ]
        if log_metric is not None:
            n_actions = sum(name.startswith("reward_action_") for name in names)
            found = metrics(self.records, n_actions, self.labels)
            for name, value in [*found, *apart(scores), *self.rewards.figures().items()]:
                log_metric(name, value)
        return scores.total

    def _warn_of_nothing(self, scores: Scores) -> None:
        """Say once that a whole batch was masked: a run could go on like that to its end."""
        if self._warned or not scores.total or any(s is not None for s in scores.total):
            return
        self._warned = True
        names = [n for n, each in scores.apart.items() if all(s is None for s in each)]
        logger.warning(
            "no answer of a batch has a reward (%s): masked answers teach nothing",
            ", ".join(names or scores.apart),
        )

    def _read(self, prompt: str, ids: Sequence[int], columns: dict[str, Any]) -> Answered:
        completion = self.chat.parse(ids)
        n_actions, action_names = int(columns["n_actions"]), columns.get("actions")
        decision = parse_action(completion, n_actions, self.pattern, action_names)
        cells = json.loads(columns.pop("cells", "{}"))
        row = MappingProxyType({**cells, "prompt": prompt, **columns})  # rewards only read it
        return Answered(prompt, completion, row, decision, _values(columns, "reward"))


def record_of(answer: Answered, text: str, scores: Scores, place: int) -> Record:
    """The record of the answer at `place` of a batch; `text` is its completion, markers kept."""
    record = {
        "row": answer.row["row"],
        "prompt": answer.prompt,
        "completion": text,
        "action": answer.decision.action,
        "reward": scores.total[place],
        "target_action": _best(answer.rewards_K),
        "reason": str(answer.decision.reason),
        "regret": _regret(_values(answer.row, "q"), answer.decision.action),
        "phase": answer.row.get("phase"),
    }
    if len(scores.apart) > 1:
        record |= {f"reward_{name}": each[place] for name, each in scores.apart.items()}
    return record


def metrics(
    records: Sequence[Record], n_actions: int, labels: Mapping[str, str]
) -> list[tuple[str, float]]:
    """Shares of all completions by reason and by action, and each valid answer's regret.

    For every phase with a label also `phase/LABEL/reward` (of what was not masked), `/regret` and
    `/invalid`. Names may repeat (`regret` comes once per answer); TRL averages values of one name,
    over all processes.
    """
    total = max(len(records), 1)
    reasons = Counter(record["reason"] for record in records)
    out = [("invalid/share", 1 - reasons[Reason.OK] / total)]
    out += [(f"invalid/{reason}", reasons[reason] / total) for reason in INVALID_REASONS]
    out.append(("masked/share", sum(r["reward"] is None for r in records) / total))
    actions = Counter(r["action"] for r in records if r["action"] is not None)
    out += [(f"action/{action}", actions[action] / total) for action in range(n_actions)]
    out += [("regret", r["regret"]) for r in records if r["regret"] is not None]
    for record in (r for r in records if r["phase"] in labels):
        name = f"phase/{labels[record['phase']]}"
        out.append((f"{name}/invalid", float(record["reason"] != Reason.OK)))
        known = [kind for kind in ("reward", "regret") if record[kind] is not None]
        out += [(f"{name}/{kind}", record[kind]) for kind in known]
    return out


def apart(scores: Scores) -> list[tuple[str, float]]:
    """Of several rewards each on its own: its mean, and the share of answers that it masked."""
    if len(scores.apart) == 1:
        return []  # TRL logs it, and `masked/share` is its
    out: list[tuple[str, float]] = []
    for name, each in scores.apart.items():
        out += [(f"rewards/{name}/mean", score) for score in each if score is not None]
        out += [(f"masked/{name}", float(score is None)) for score in each]
    return out


def phase_labels(phases: Sequence[str]) -> dict[str, str]:
    """A label fit for a metric's name for each phase; none for a single phase, which is the whole.

    Only letters, digits, `.`, `-` and `_` stay; phases that would then be one get a number.
    """
    labels: dict[str, str] = {}
    for phase in phases if len(phases) > 1 else []:
        label = re.sub(r"[^\w.-]+", "_", phase)
        taken = label in labels.values()
        labels[phase] = f"{label}_{len(labels) + 1}" if taken else label
    return labels


class InvalidWatch:
    """Warn when invalid answers become more frequent while nothing punishes them.

    The share is smoothed over about five generation batches. The first warning comes when it has
    doubled from its lowest value or gone half the way from there to 1 (and is at least a tenth),
    the next when it has doubled again.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self.limit = math.inf
        self.warned = False

    def update(self, share: float) -> bool:
        """Take the share of one generation batch; True (and a logged warning) if it is time."""
        self.share = share if self.share is None else 0.8 * self.share + 0.2 * share
        if not self.warned:
            self.limit = min(self.limit, max(0.1, min(2 * self.share, (1 + self.share) / 2)))
        if self.share < self.limit:
            return False
        self.limit, self.warned = 2 * self.share, True
        logger.warning(
            "%.0f %% of the answers are invalid by now: with invalid_reward = mask nothing "
            "punishes them; a number below all rewards does",
            100 * self.share,
        )
        return True

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        vars(self).update(state)


def _is_column(values: Any, length: int) -> bool:
    return isinstance(values, list) and len(values) == length


def _values(columns: Mapping[str, Any], kind: str) -> list[float]:
    """The row's `{kind}_action_0..` as floats, NaN where there is none; [] without such columns."""
    values: list[float] = []
    while (name := f"{kind}_action_{len(values)}") in columns:
        value = columns[name]
        values.append(math.nan if value is None else float(value))
    return values


def _best(rewards_K: Sequence[float]) -> int | None:
    known = [k for k, value in enumerate(rewards_K) if not math.isnan(value)]
    return max(known, key=lambda k: rewards_K[k]) if known else None


def _regret(q_K: Sequence[float], action: int | None) -> float | None:
    """max Q - Q[action], None where either is unknown or -inf."""
    known = [value for value in q_K if math.isfinite(value)]
    if action is None or action >= len(q_K) or not math.isfinite(q_K[action]):
        return None
    return max(known) - q_K[action]
