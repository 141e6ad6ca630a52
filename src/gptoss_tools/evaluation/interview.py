"""Questions to one model, through a journal: what has been answered is not asked again.

The model loads at the first question that is not answered yet, so repeating a finished evaluation
costs no model at all.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.evaluation.journal import Journal
from gptoss_tools.evaluation.metrics import Choices
from gptoss_tools.evaluation.policy import Answer, Policy
from gptoss_tools.models.adapters import without_adapter
from gptoss_tools.settings import EvaluateSettings

Tick = Callable[[int], None]


class Interview:
    """Ask one model, known in the journal as `who`; `bare` puts its adapter aside while it answers.

    `tick` hears how many answers are done, whether they were decoded or found.
    """

    def __init__(
        self,
        who: str,
        load: Callable[[], Policy],
        journal: Journal,
        settings: EvaluateSettings,
        tick: Tick,
        *,
        bare: bool = False,
    ) -> None:
        self.who, self.load, self.journal, self.tick = who, load, journal, tick
        self.settings, self.bare = settings, bare

    def rows(self, table: DecisionTable, draw: int | None = None) -> list[dict[str, Any]]:
        """Answer every row of `table`, greedily or as the given draw; records in row order."""
        records = [self.journal.get((self.who, draw, str(row))) for row in range(len(table))]
        missing = [row for row, record in enumerate(records) if record is None]
        self.tick(len(table) - len(missing))
        names = None if table.names is None else [table.names[row] for row in missing]
        prompts = [table.prompts[row] for row in missing]
        counts = [int(table.n_actions[row]) for row in missing]
        for answer in self._ask(prompts, counts, names, draw, missing):
            row = missing[answer.index]
            records[row] = self.journal.add((self.who, draw, str(row)), record_of(answer))
            self.tick(1)
        return [record for record in records if record is not None]

    def prompts(self, questions: Sequence[tuple[str, str]], n_actions: int) -> list[dict[str, Any]]:
        """Answer (name, prompt) pairs greedily; a name whose prompt has changed is asked again."""
        digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for _, text in questions]
        records = [self.journal.get((self.who, None, name)) for name, _ in questions]
        missing = [
            place
            for place, (record, digest) in enumerate(zip(records, digests, strict=True))
            if record is None or record.get("prompt") != digest
        ]
        self.tick(len(questions) - len(missing))
        texts = [questions[place][1] for place in missing]
        for answer in self._ask(texts, [n_actions] * len(texts), None, None, missing):
            place = missing[answer.index]
            record = {**record_of(answer), "prompt": digests[place]}
            records[place] = self.journal.add((self.who, None, questions[place][0]), record)
            self.tick(1)
        return [record for record in records if record is not None]

    def _ask(
        self,
        prompts: list[str],
        n_actions: list[int],
        names: list[list[str]] | None,
        draw: int | None,
        known_as: list[int],
    ) -> Any:
        if not prompts:
            return
        policy, decoding = self.load(), self.settings
        if draw is not None:
            # The answer that --sample may ask for has the seed itself.
            decoding = decoding.model_copy(
                update={"sample": True, "seed": (decoding.seed + 1 + draw) % 2**32}
            )
        aside = without_adapter(policy.model) if self.bare else contextlib.nullcontext()
        with aside:
            yield from policy.answer(
                prompts,
                n_actions,
                names=names,
                decoding=decoding,
                prompt=self.settings,
                action_pattern=self.settings.action_pattern,
                draw_as=known_as,
            )


def record_of(answer: Answer) -> dict[str, Any]:
    """Return what the journal keeps of an answer."""
    return {
        "action": answer.decision.action,
        "reason": answer.decision.reason.value,
        "analysis": answer.completion.channel_text("analysis"),
        "final": answer.completion.final,
        "completion": answer.text,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 4),
    }


def choices(records: Sequence[Mapping[str, Any]]) -> Choices:
    """Return the choices of one model on all rows of a table."""
    actions = [-1 if r["action"] is None else r["action"] for r in records]
    return Choices(np.array(actions, dtype=np.int64), [r["reason"] for r in records])
