"""Legacy prompt text -> messages -> the Harmony prompt gpt-oss's own chat template gives.

TRL ships that template as a file; it is rendered here with jinja2, set up as transformers does, so
no tokenizer, network or import of TRL is needed. Completions are read in chat.completions, whose
names are offered here too. Leaves out files and rows: callers add them to errors.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptoss_tools.chat.completions import (
    Completion,
    HarmonyTokens,
    Message,
    parse_completion,
    split_text,
)
from gptoss_tools.errors import ConfigError, DataError, MachineError

__all__ = [
    "GENERATION_PROMPT",
    "REASONING_EFFORTS",
    "Completion",
    "HarmonyTokens",
    "Message",
    "chat_template",
    "find_special",
    "is_harmony",
    "legacy_pieces",
    "parse_completion",
    "parse_legacy",
    "render",
    "split_text",
]

GENERATION_PROMPT = "<|start|>assistant"
REASONING_EFFORTS = ("low", "medium", "high")

_MARKER = re.compile(r"^[^\S\n]*(system|user):[^\S\n]*", re.IGNORECASE | re.MULTILINE)
_SPECIAL = re.compile(r"<\|\w+\|>")
_HARMONY = re.compile(
    r"\s*(?:<\|startoftext\|>)?<\|start\|>\w[^<]*(?:<\|channel\|>[^<]*)?<\|message\|>"
)
_HOLE = re.compile(r"\x00(\d+)\x00")
_FIRST_ONLY = ("system", "developer")


def is_harmony(text: str) -> bool:
    """True if the text already begins with a Harmony message header."""
    return _HARMONY.match(text) is not None


def find_special(text: str) -> str | None:
    """The first `<|...|>` in the text, which a tokenizer would read as a special token."""
    found = _SPECIAL.search(text)
    return found.group() if found else None


def parse_legacy(text: str) -> list[dict[str, str]]:
    """Split `system:` / `user:` text into messages (roles `developer` and `user`).

    A marker stands at the start of a line, in any case; text before one is the user's. Parts of one
    role are joined by a line break and stripped, line ends become `\\n`. Text without a user part
    is all user text. gpt-oss puts a caller's system text in the developer message, hence the role.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts: dict[str, list[str]] = {"system": [], "user": []}
    role, begin = "user", 0
    for marker in _MARKER.finditer(text):
        parts[role].append(text[begin : marker.start()].removesuffix("\n"))
        role, begin = marker.group(1).lower(), marker.end()
    parts[role].append(text[begin:])
    system = "\n".join(part for part in parts["system"] if part.strip()).strip()
    user = "\n".join(part for part in parts["user"] if part.strip()).strip()
    if not user:
        return [{"role": "user", "content": text.strip()}]
    messages = [{"role": "user", "content": user}]
    return [{"role": "developer", "content": system}, *messages] if system else messages


def render(
    messages: Sequence[Mapping[str, Any]],
    *,
    date: str,
    reasoning_effort: str = "medium",
    model_identity: str | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt text of gpt-oss's chat template, byte for byte, with its date pinned.

    `date` is YYYY-MM-DD. Raises DataError for what the template would drop or misread in silence:
    a system or developer message after the first place, unknown roles, special tokens in content.
    """
    _check_options(date, reasoning_effort, model_identity)
    for place, message in enumerate(messages):
        _check_message(place, message)
    if not messages:
        raise DataError("the prompt has no messages")
    options = (date, reasoning_effort, model_identity, add_generation_prompt)
    if any(set(m) != {"role", "content"} or m["role"] == "assistant" for m in messages):
        return _render(messages, *options)
    # The template copies system, developer and user text unchanged, so each shape of conversation
    # is rendered once with holes, and the rows only fill them.
    shape = tuple((m["role"], bool(m["content"])) for m in messages)
    pieces = list(_pieces(shape, *options))
    for place in range(1, len(pieces), 2):
        pieces[place] = messages[int(pieces[place])]["content"]
    return "".join(pieces)


def legacy_pieces(
    ruled: bool, *, date: str, reasoning_effort: str = "medium", model_identity: str | None = None
) -> tuple[str, str, str]:
    """What `render` puts before, between and after the texts that `parse_legacy` finds.

    Before the system text, between it and the user's, after that; without one (`ruled` false)
    nothing is between.
    """
    _check_options(date, reasoning_effort, model_identity)
    shape = (("developer", True), ("user", True)) if ruled else (("user", True),)
    around = _pieces(shape, date, reasoning_effort, model_identity, True)[::2]
    return (around[0], around[1] if ruled else "", around[-1])


@functools.lru_cache(maxsize=1)
def chat_template() -> str:
    """Text of gpt-oss's chat template as TRL ships it; MachineError if TRL is not installed."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise MachineError("TRL is not installed, and its gpt-oss chat template is needed")
    path = Path(spec.origin).parent / "chat_templates" / "gptoss.jinja"
    if not path.is_file():
        raise MachineError(
            "the installed TRL ships no gpt-oss chat template", hint="install the TRL we pin"
        )
    return path.read_text(encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _compiled() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    return environment.from_string(chat_template())


def _to_json(value: Any, **options: Any) -> str:
    # jinja2's own filter escapes HTML characters, which would change what the model reads.
    return json.dumps(value, ensure_ascii=False, **options)


def _raise_template_error(message: str) -> None:
    raise jinja2.TemplateError(message)


def _render(
    messages: Sequence[Mapping[str, Any]],
    date: str,
    reasoning_effort: str,
    model_identity: str | None,
    add_generation_prompt: bool,
) -> str:
    variables: dict[str, Any] = {"reasoning_effort": reasoning_effort}
    if model_identity is not None:
        variables["model_identity"] = model_identity
    try:
        return _compiled().render(
            messages=[_with_thinking(message) for message in messages],
            strftime_now=datetime.date.fromisoformat(date).strftime,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise DataError(f"gpt-oss's chat template refuses the messages: {error}") from error


@functools.lru_cache(maxsize=64)
def _pieces(shape: tuple[tuple[str, bool], ...], *options: Any) -> tuple[str, ...]:
    """Text around the contents: text, message number, text, message number, ..., text."""
    messages = [
        {"role": role, "content": f"\x00{place}\x00" if filled else ""}
        for place, (role, filled) in enumerate(shape)
    ]
    return tuple(_HOLE.split(_render(messages, *options)))


def _with_thinking(message: Mapping[str, Any]) -> dict[str, Any]:
    message = dict(message)
    if "reasoning_content" in message:
        message.setdefault("thinking", message["reasoning_content"])
    return message


def _check_options(date: str, reasoning_effort: str, model_identity: str | None) -> None:
    if not _is_date(date):
        raise ConfigError(f"date {date!r} is not a day", hint="write it as YYYY-MM-DD")
    if reasoning_effort not in REASONING_EFFORTS:
        raise ConfigError(
            f"reasoning_effort {reasoning_effort!r} is unknown to gpt-oss",
            hint=f"one of {', '.join(REASONING_EFFORTS)}",
        )
    special = find_special(model_identity or "")
    if special:
        raise ConfigError(f"model_identity contains {special}, a special token of gpt-oss")


@functools.lru_cache(maxsize=64)
def _is_date(date: str) -> bool:
    try:
        return datetime.date.fromisoformat(date).isoformat() == date
    except ValueError:
        return False


def _check_message(place: int, message: Mapping[str, Any]) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise DataError(f"message {place + 1} has the unknown role {role!r}")
    if role in _FIRST_ONLY and place > 0:
        raise DataError(
            f"message {place + 1} is a {role} message, which gpt-oss's chat template reads only in"
            " the first place and drops elsewhere",
            hint="put the instructions in one message at the start",
        )
    texts = [content, message.get("thinking"), message.get("reasoning_content")]
    if not isinstance(content, str) and not (role == "assistant" and content is None):
        raise DataError(f"the content of message {place + 1} ({role}) is not text")
    for text in texts:
        special = find_special(text) if isinstance(text, str) else None
        if special:
            raise DataError(
                f"message {place + 1} ({role}) contains {special}, which gpt-oss would read as a"
                " special token",
                hint="remove it or write it differently",
            )
