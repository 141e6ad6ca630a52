"""The decisions that lost most, with everything that was said, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tools.chat.completions import split_text
from gptoss_tools.report.collect import Row, RunRecord, value_of
from gptoss_tools.report.maps import moment_of
from gptoss_tools.report.words import DASH, REASONS, short

LONGEST = 40_000  # characters of one text; a page full of endless answers would help nobody


@dataclass(frozen=True)
class Value:
    """One action of a row: its name, its value, and whether it was chosen or is the best."""

    name: str
    value: str
    chosen: bool
    best: bool


@dataclass(frozen=True)
class Bad:
    """One costly decision. `texts` are (channel, text), `regret` its sorting key."""

    run: int
    row: str
    where: str
    episode: str
    phase: str
    hour: str
    reason: str
    chosen: str
    best: str
    regret: float
    lost: str
    values: Sequence[Value]
    prompt: str
    texts: Sequence[tuple[str, str]]


def worst_rows(records: Sequence[RunRecord]) -> list[Bad]:
    """Return the worst decisions of every run, the costliest first."""
    found = [_bad(row, place, r) for place, r in enumerate(records) for row in r.worst]
    return sorted(found, key=lambda bad: -bad.regret)


def _bad(row: Row, place: int, record: RunRecord) -> Bad:
    q = row.get("q") or []
    names = row.get("names") or record.action_names(len(q))
    action, best, lost = row.get("action"), row.get("optimal_action"), value_of(row.get("regret"))
    reason = str(row.get("reason") or "ok")
    moment = moment_of(row.get("timestamp"))

    def name(k: Any) -> str:
        return str(names[k]) if isinstance(k, int) and 0 <= k < len(names) else DASH

    return Bad(
        run=place,
        row=str(row.get("row", "")),
        where=str(row.get("where") or ""),
        episode=str(row.get("episode") or ""),
        phase=str(row.get("phase") or ""),
        hour=f"{moment:%H}" if moment else "",
        reason=REASONS.get(reason, reason),
        chosen="invalid" if action is None else name(action),
        best=name(best),
        regret=lost if lost == lost else -1.0,
        lost=short(lost),
        values=[
            Value(name(k), short(value_of(v)), k == action, k == best) for k, v in enumerate(q)
        ],
        prompt=_cut(str(row.get("prompt") or "")),
        texts=[(channel, _cut(text)) for channel, text in _channels(row)],
    )


def _channels(row: Row) -> list[tuple[str, str]]:
    """Return what was said by channel: from the completion, else as the file has it split."""
    said = row.get("completion")
    if isinstance(said, str) and "<|message|>" in said:
        messages = [(m.channel or "no channel", m.content) for m in split_text(said).messages]
        if messages:
            return messages
    named = [(name, row.get(name)) for name in ("analysis", "final")]
    split = [(name, str(text)) for name, text in named if text]
    return split or ([("completion", str(said))] if said else [])


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n[{len(text) - LONGEST} more characters are in decisions.jsonl]"
