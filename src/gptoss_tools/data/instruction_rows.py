"""One row of a table to the examples it holds: a question and its answer, or a conversation.

    format             columns
    messages           `messages` (role, content) or `conversations` (from, value: ShareGPT)
    prompt-completion  `prompt`, `completion`: two texts, two lists of messages, or Harmony and text
    alpaca             `instruction`, `output`, and maybe `input`; any others are ignored
    decisions          `prompt` and values per action: the best action is the answer
    prompts            `prompt`, `reference`: what prepare-data writes

`auto` takes the first whose columns a file has. Decision tables are read whole:
data.instructions.
"""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tools.chat.harmony import GENERATION_PROMPT, is_harmony
from gptoss_tools.data.decisions import as_messages
from gptoss_tools.errors import DataError

ROLES = {
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "model", "bot", "chatgpt")},
    **{name: name for name in ("system", "developer", "tool")},
}


@dataclass(frozen=True)
class Instruction:
    """One question, with or without a text it is about, and its answer."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Conversation:
    """Messages (`role`, `content`, maybe `thinking`), the last of them the answer."""

    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Rendered:
    """A prompt that is Harmony text already, and its answer."""

    prompt: str
    answer: str


Example = Instruction | Conversation | Rendered


# A name with `*` stands for any number of columns, of names between `|` one is enough.
COLUMNS: dict[str, Sequence[str]] = {
    "messages": ("messages|conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "decisions": ("prompt", "q_action_*|reward_action_*|q|rewards"),
    "prompts": ("prompt", "reference"),
}


def format_of(
    names: Iterable[str],
    wanted: str,
    where: str,
    known: Mapping[str, Sequence[str]] = COLUMNS,
) -> str:
    """The format of a file with these columns; DataError if it is not the wanted one, or none."""
    columns = sorted(set(names))
    fitting = (name for name, needs in known.items() if _hold(columns, needs))
    kind = next((name for name in fitting if wanted in ("auto", name)), None)
    if kind is None:
        raise DataError(
            f"{where} has the columns {', '.join(columns) or 'none'}, which are not those "
            + ("of any known format" if wanted == "auto" else f"of the format {wanted}"),
            hint="known columns: " + "; ".join(", ".join(needs) for needs in known.values()),
        )
    return kind


def _hold(columns: Sequence[str], needs: Sequence[str]) -> bool:
    """Whether one column at least is there for each need."""
    return all(any(fnmatch.filter(columns, name) for name in need.split("|")) for need in needs)


def _alpaca(cells: dict[str, Any], row: str, turns: str) -> Iterator[Example]:
    text = cells.get("input")
    yield Instruction(
        _text(cells, "instruction", row),
        "" if is_empty(text) else _text(cells, "input", row),
        _text(cells, "output", row),
    )


def _prompt_completion(
    cells: dict[str, Any], row: str, turns: str, answers: str = "completion"
) -> Iterator[Example]:
    before = as_messages(cells["prompt"])
    if before is not None:
        after = as_messages(cells[answers])
        if after is None:
            after = [{"role": "assistant", "content": _text(cells, answers, row)}]
        yield from _conversation([*before, *after], f"{row}, column prompt", "last")
        return
    prompt, answer = _text(cells, "prompt", row), _text(cells, answers, row)
    if not is_harmony(prompt):
        yield Instruction(prompt, "", answer)
    elif not prompt.endswith(GENERATION_PROMPT):
        raise DataError(f"{row}, column prompt: Harmony text that does not end in an empty answer")
    else:
        yield Rendered(prompt, answer)


def _messages(cells: dict[str, Any], row: str, turns: str) -> Iterator[Example]:
    column = "messages" if "messages" in cells else "conversations"
    yield from _conversation(cells[column], f"{row}, column {column}", turns)


READERS: dict[str, Callable[[dict[str, Any], str, str], Iterator[Example]]] = {
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "prompts": functools.partial(_prompt_completion, answers="reference"),
    "alpaca": _alpaca,
}


def _conversation(cell: Any, where: str, turns: str) -> Iterator[Example]:
    """One example per answer that follows a user's message, each with all that was said before."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: neither messages nor their JSON text") from None
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}: no messages")
    messages = [_message(entry, f"{where}, message {n}") for n, entry in enumerate(cell, 1)]
    roles = [message["role"] for message in messages]
    answers = [
        place for place, role in enumerate(roles) if role == "assistant" and "user" in roles[:place]
    ]
    if not answers:
        raise DataError(f"{where}: no assistant's message follows a user's, so nothing is learned")
    for place in answers if turns == "all" else answers[-1:]:
        yield Conversation(tuple(messages[: place + 1]))


def _message(entry: Any, where: str) -> dict[str, str]:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not an object with role and content")
    said = entry.get("role", entry.get("from"))
    if not isinstance(said, str) or said.lower() not in ROLES:
        raise DataError(f"{where} has the role {said!r}", hint=f"known: {', '.join(ROLES)}")
    content = "value" if "value" in entry else "content"
    message = {"role": ROLES[said.lower()], "content": _text(entry, content, where)}
    thinking = entry.get("thinking", entry.get("reasoning_content"))
    if not is_empty(thinking):
        message["thinking"] = _text({"thinking": thinking}, "thinking", where)
    return message


def _text(cells: dict[str, Any], column: str, where: str) -> str:
    cell = cells.get(column)
    if is_empty(cell):
        raise DataError(f"{where}, column {column}: the cell is empty")
    if not isinstance(cell, str):
        shown = repr(cell) if len(repr(cell)) <= 60 else repr(cell)[:57] + "..."
        raise DataError(f"{where}, column {column}: {shown} is not text")
    return cell


def is_empty(cell: Any) -> bool:
    """Whether a cell of text holds nothing."""
    # Not tables.is_missing: an answer may well be the word `None`.
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())
