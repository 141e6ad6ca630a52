"""Prompts of chat models other than gpt-oss, as the template of their own tokenizer writes them."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from gptoss_tools.errors import ConfigError, DataError, first_line

OPEN, CLOSE = "<think>", "</think>"
SWITCHES = ("enable_thinking", "thinking")
"""What templates call the switch that keeps a model from thinking before it answers."""

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_ROLES = ("system", "developer", "user", "assistant", "tool")


class TemplatePrompts:
    """A tokenizer's chat template, with its date pinned where it prints today's."""

    def __init__(
        self, tokenizer: Any, *, date: str | None = None, model_identity: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.specials = special_texts(tokenizer)
        self.template = _pinned(tokenizer.get_chat_template(), date)
        self.variables: dict[str, Any] = {}
        if model_identity is not None:
            if "model_identity" not in self.template:
                raise ConfigError(
                    "model_identity is given, and the model's chat template has no place for it",
                    hint="say it in a system message",
                )
            self.variables["model_identity"] = model_identity

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], *, reasoning_effort: str = "medium"
    ) -> str:
        """The messages as the template writes them; each must be found in what it wrote."""
        if not messages:
            raise DataError("the prompt has no messages")
        said = [self.checked(place, message) for place, message in enumerate(messages)]
        text = self.render(said, reasoning_effort)
        left = text
        for place in sorted(range(len(said)), key=lambda i: -len(said[i]["content"])):
            # Templates trim contents and leave out what an earlier answer had thought.
            content = said[place]["content"].rpartition(CLOSE)[2].strip()
            if content not in left:
                raise DataError(
                    f"the model's chat template leaves out message {place + 1} "
                    f"({messages[place]['role']})",
                    hint="put its text into the user's message",
                )
            left = left.replace(content, "\x00", 1)
        return text

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        reasoning_effort: str = "medium",
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """What the template makes of messages; DataError where it refuses them.

        The effort `none` turns the switch that some templates have for thinking.
        """
        effort: dict[str, Any] = {"reasoning_effort": reasoning_effort}
        if reasoning_effort == "none":
            effort = dict.fromkeys(SWITCHES, False)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self.variables,
                    **effort,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the tokenizer's chat template refuses the messages: {first_line(error)}"
            ) from error

    def checked(self, place: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as templates know it: gpt-oss's developer is their system, and so on."""
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise DataError(f"message {place + 1} has the unknown role {role!r}")
        if content is None and role == "assistant":
            content = ""
        if not isinstance(content, str):
            raise DataError(f"the content of message {place + 1} ({role}) is not text")
        thought = message.get("reasoning_content") or message.get("thinking")
        for text in (content, thought or ""):
            if self.specials and (found := self.specials.search(text)):
                raise DataError(
                    f"message {place + 1} ({role}) contains {found[0]}, which the model would read "
                    "as a special token",
                    hint="remove it or write it differently",
                )
        known = {**message, "role": "system" if role == "developer" else role, "content": content}
        return {**known, "reasoning_content": thought} if thought else known


def special_texts(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds any of the texts that a tokenizer reads as special tokens."""
    tokens = tokenizer.added_tokens_decoder.values()
    names = [re.escape(str(token)) for token in tokens if token.special]
    return re.compile("|".join(names)) if names else None


def _pinned(template: str, date: str | None) -> str:
    """The template with a day written out where it would print today's."""
    try:
        day = datetime.date.today() if date is None else datetime.date.fromisoformat(date)
    except ValueError:
        raise ConfigError(f"date {date!r} is not a day", hint="write it as YYYY-MM-DD") from None
    pinned = _TODAY.sub(lambda call: json.dumps(day.strftime(call[2])), template)
    if "strftime_now(" in pinned:
        raise ConfigError(
            "the tokenizer's chat template prints the date in a way that cannot be pinned",
            hint="write strftime_now('...') with its format in quotes into the template",
        )
    return pinned
