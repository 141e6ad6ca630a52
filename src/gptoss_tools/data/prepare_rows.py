"""One raw row to one prepared row: its prompt, what its answers are measured by, its side.

Side and rank are functions of the row's own content and the seed, so no row moves when a dataset
grows, shrinks or comes in another order. Leaves out what a format's columns mean
(data.prepare_formats), and reading and writing (data.prepare).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from gptoss_tools.chat.harmony import GENERATION_PROMPT, find_special, is_harmony, render
from gptoss_tools.data.instruction_rows import is_empty
from gptoss_tools.data.prepare_formats import DataFormat, PromptRow, Unusable
from gptoss_tools.data.rubrics import RubricItem, dump_rubric, parse_rubric
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.settings import PrepareRowSettings

MEASURES = ("answer", "reference", "rubric")
STANDARD = ("prompt", *MEASURES, "id", "source")

_INSTRUCTIONS = ("system", "developer")
_ANY_DAY: dict[str, Any] = {"date": "2000-01-01"}


@dataclass(frozen=True)
class PreparedRow:
    """A row as it is written, the hash of its content, its place in the draw, and its side.

    `left_out` names the columns that no table cell can hold.
    """

    cells: dict[str, Any]
    digest: bytes
    rank: int
    train: bool
    left_out: tuple[str, ...] = ()


class RowPreparer:
    """Prepares rows as the settings say; ConfigError where their text is no prompt's."""

    def __init__(self, settings: PrepareRowSettings):
        self.settings = settings
        tags = (*settings.reasoning_tags, *settings.answer_tags)
        asked = (
            "First write your reasoning between {} and {}. Then write your final answer, and "
            "nothing else, between {} and {}."
        ).format(*tags)
        parts = [settings.system_prompt, asked if settings.ask_for_tags else None]
        self.instructions = "\n\n".join(part for part in parts if part)
        if special := find_special(self.instructions):
            raise ConfigError(f"the instructions contain {special}, a special token of gpt-oss")

    def __call__(self, read: DataFormat, cells: Mapping[str, Any], source: str) -> PreparedRow:
        """Prepare one row; Unusable, with the reason, where it must be left out."""
        row = read(cells)
        try:
            return (
                self._as_it_is(row, cells)
                if read.as_it_is
                else self._made(read, row, cells, source)
            )
        except UnicodeEncodeError as error:
            raise Unusable("unreadable text", "half of a surrogate pair is no character") from error

    def _as_it_is(self, row: PromptRow, cells: Mapping[str, Any]) -> PreparedRow:
        if self.instructions or self.settings.rubric_in_prompt:
            raise ConfigError(
                "a table with values per action goes through as it is",
                hint="leave out system_prompt, ask_for_tags and rubric_in_prompt",
            )
        prompt = _messages(row.prompt)
        self._refuse_long(prompt)
        written = {name: _writable(cell) for name, cell in cells.items()}
        return self._placed(written, prompt, cells, content=sorted(written.items()))

    def _made(
        self, read: DataFormat, row: PromptRow, cells: Mapping[str, Any], source: str
    ) -> PreparedRow:
        others = {name: cell for name, cell in cells.items() if name not in read.replaces}
        found = {name: getattr(row, name) for name in MEASURES}
        for name in MEASURES:  # commonsense_170k, say, has an answer beside instruction and output
            if found[name] is None and not is_empty(others.get(name)):
                found[name] = others.pop(name)
        question = _messages(row.prompt)
        items = None if found["rubric"] is None else self._rubric(found["rubric"])
        prompt = self._asked(question, items or [])
        self._refuse_long(prompt)
        _refuse_unreadable(prompt)
        measures = {
            "answer": _as_text(found["answer"]),
            "reference": _as_text(found["reference"]),
            "rubric": dump_rubric(items) if items else None,
        }
        content = [question, *measures.values()]
        own = others.pop("source", None)
        written = {
            "prompt": prompt,
            **{name: cell for name, cell in measures.items() if cell is not None},
            "id": _digest(content).hex(),
            "source": source if is_empty(own) else _scalar(own),
        }
        identity = others.pop("id", None)
        if not is_empty(identity) and identity != written["id"]:
            written["original_id"] = _scalar(identity)
        left_out = []
        for name, cell in others.items():
            kept = _scalar(cell)
            if kept is not None and name not in written:
                written[name] = kept
            elif not is_empty(cell):
                left_out.append(name)
        return self._placed(written, question, cells, content, tuple(left_out))

    def _placed(
        self,
        written: dict[str, Any],
        prompt: Any,
        cells: Mapping[str, Any],
        content: Any,
        left_out: tuple[str, ...] = (),
    ) -> PreparedRow:
        together = cells.get(self.settings.split_by) if self.settings.split_by else None
        key = _split_key(prompt) if is_empty(together) else [str(together)]
        digest = _digest(content)
        side = self._salted(_digest(key), b"side")
        return PreparedRow(
            written,
            digest,
            rank=self._salted(digest, b"rank"),
            train=side < self.settings.train_fraction * 2.0**64,
            left_out=left_out,
        )

    def _salted(self, digest: bytes, use: bytes) -> int:
        """A number below 2^64 that says nothing about that of another use or seed."""
        salt = self.settings.seed.to_bytes(8, "little")
        return int.from_bytes(blake2b(digest, digest_size=8, salt=salt, person=use).digest())

    def _rubric(self, cell: Any) -> list[RubricItem]:
        if is_empty(cell) or (isinstance(cell, list) and not cell):
            raise Unusable("no rubric items")
        try:
            return parse_rubric(cell, "rubric", pitfalls=self.settings.pitfalls)
        except DataError as error:
            reason, detail = "unreadable rubric", str(error).removeprefix("rubric: ")
        with contextlib.suppress(DataError):
            parse_rubric(cell, "rubric", pitfalls="positive")
            reason = "unreadable polarity"
        raise Unusable(reason, detail)

    def _asked(self, question: Any, items: list[RubricItem]) -> Any:
        """The question with the instructions and, where it is asked for, the rubric before it."""
        if not self.instructions and not self.settings.rubric_in_prompt:
            return question
        if isinstance(question, str):
            raise Unusable("the prompt is Harmony text already", "no instructions can be added")
        messages = [dict(message) for message in question]
        if self.settings.rubric_in_prompt and items:
            lines = [f"- {'' if item.positive else 'Not: '}{item.description}" for item in items]
            last = max(n for n, message in enumerate(messages) if message["role"] == "user")
            messages[last]["content"] = "\n".join(
                ["Rubric:", *lines, "", messages[last]["content"]]
            )
        if self.instructions and messages[0]["role"] in _INSTRUCTIONS:
            messages[0]["content"] = f"{self.instructions}\n\n{messages[0]['content']}"
        elif self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        return messages

    def _refuse_long(self, prompt: Any) -> None:
        most = self.settings.max_prompt_chars
        texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
        if most is not None and (size := sum(map(len, texts))) > most:
            raise Unusable(f"prompt longer than {most} characters", f"it has {size}")


def _messages(prompt: Any) -> Any:
    """A prompt as messages, or the Harmony text it is; Unusable without a question in it."""
    if isinstance(prompt, str) and is_harmony(prompt):
        if not prompt.endswith(GENERATION_PROMPT):
            raise Unusable(
                "unreadable prompt", f"Harmony text that ends not in {GENERATION_PROMPT}"
            )
        return prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    for number, message in enumerate(prompt, 1):
        if set(message) - {"role", "content", "thinking"} or not isinstance(
            message.get("content"), str
        ):
            raise Unusable("unreadable prompt", f"message {number} is more than role and content")
    if all(m["role"] != "user" or not m["content"].strip() for m in prompt):
        raise Unusable("no question", "no message of a user holds text")
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def _refuse_unreadable(prompt: Any) -> None:
    """Unusable for what training would refuse: roles, their order, special tokens."""
    if isinstance(prompt, str):
        return
    for message in prompt:
        if special := find_special(message["content"]):
            raise Unusable(
                "special token in the prompt", f"{special} in the {message['role']} part"
            )
    try:
        render(prompt, **_ANY_DAY)
    except DataError as error:
        raise Unusable("unreadable prompt", str(error)) from None


def _split_key(prompt: Any) -> list[Any]:
    """What makes two prompts the same question: neither case, white space nor instructions."""
    if isinstance(prompt, str):
        return [_folded(prompt)]
    return [[m["role"], _folded(m["content"])] for m in prompt if m["role"] not in _INSTRUCTIONS]


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _digest(content: Any) -> bytes:
    """16 bytes of any JSON; UnicodeEncodeError where it holds what is no text."""
    return blake2b(json.dumps(content, ensure_ascii=False).encode(), digest_size=16).digest()


def _scalar(cell: Any) -> Any:
    """A cell that any table can hold, None for all others and for nothing."""
    if isinstance(cell, datetime.date):
        return cell.isoformat()
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    return cell if isinstance(cell, str | bool | int | float) else None


def _as_text(cell: Any) -> str | None:
    kept = _scalar(cell)
    return None if kept is None else str(kept)


def _writable(cell: Any) -> Any:
    """A cell of a table that passes through: lists stay, what JSON has no word for is its text."""
    if isinstance(cell, list | dict) or cell is None:
        return cell
    kept = _scalar(cell)
    return str(cell) if kept is None and not is_empty(cell) else kept
