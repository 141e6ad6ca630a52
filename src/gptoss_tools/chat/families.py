"""What differs between families of chat models: how a prompt is written and an answer read.

`HarmonyChat` is gpt-oss's way, `chat.template_chat.TemplateChat` that of any model whose tokenizer
has a chat template. Everything that asks or trains a model goes through one of the two.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from gptoss_tools.chat.channel_text import ChannelText
from gptoss_tools.chat.completions import Completion, HarmonyTokens, Stop, parse_completion
from gptoss_tools.chat.harmony import GENERATION_PROMPT, is_harmony, parse_legacy, render
from gptoss_tools.chat.template_chat import TemplateChat
from gptoss_tools.errors import ConfigError, DataError

__all__ = ["Chat", "HarmonyChat", "HarmonyPrompts", "Prompts", "RawPrompts", "Reader", "chat_of"]

Messages = Sequence[Mapping[str, Any]]


class Prompts(Protocol):
    """Writes the text that a model continues; DataError, without file and row, where it cannot."""

    def prompt(self, messages: Messages, *, reasoning_effort: str = "medium") -> str:
        """The messages as this model reads them, up to where its answer begins."""
        ...

    def of_text(
        self, text: str, *, reasoning_effort: str = "medium", from_table: bool = False
    ) -> str:
        """A prompt held as text: what is written for this model stays, other text is rendered.

        Tables for gpt-oss are converted beforehand: `from_table` refuses what was not.
        """
        ...


class Reader(Protocol):
    """Turns the tokens of one answer into (channel, text) as they come."""

    def push(self, token: int) -> tuple[str | None, str] | None:
        """Take one token; return the text that is now certain, if any."""
        ...

    def close(self) -> tuple[str | None, str] | None:
        """Return what was held back, when no more tokens come."""
        ...


class Chat(Prompts, Protocol):
    """And reads what the model continues it with."""

    family: str
    """For people and records: `gpt-oss`, or `chat template`."""

    pad_id: int
    pad_token: str

    @property
    def stops(self) -> Mapping[Any, Stop]:
        """Tokens that end an answer, with the names they get in `Completion.stop`."""
        ...

    def parse(self, ids: Iterable[int]) -> Completion:
        """Generated ids (prompt and padding removed) as messages by channel; never raises."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        ...

    def reader(self) -> Reader:
        """A new reader for one answer."""
        ...


def chat_of(
    tokenizer: Any,
    *,
    date: str | None = None,
    model_identity: str | None = None,
    reasoning_effort: str = "medium",
    generation_config: Any = None,
) -> Chat:
    """Return how the model of this tokenizer is spoken to.

    `date` (YYYY-MM-DD, default today) stands where a template prints today's; `reasoning_effort` is
    that of the prompts whose answers are read; the model's `generation_config` may know more tokens
    that end an answer. Raises ConfigError for a tokenizer with neither gpt-oss's tokens nor a chat
    template.
    """
    try:
        harmony = HarmonyChat(tokenizer, date=date, model_identity=model_identity)
    except ConfigError:
        if tokenizer.chat_template:
            return TemplateChat(
                tokenizer,
                date=date,
                model_identity=model_identity,
                reasoning_effort=reasoning_effort,
                generation_config=generation_config,
            )
        raise ConfigError(
            "the tokenizer has neither gpt-oss's tokens nor a chat template, so this is a base "
            "model, which goes on with a text and answers nobody",
            hint="use its chat or instruct version; gptoss train-sft trains base models too",
        ) from None
    if reasoning_effort == "none":
        raise ConfigError(
            "reasoning_effort is none, and gpt-oss always thinks",
            hint="--reasoning-effort low keeps it short",
        )
    return harmony


class HarmonyPrompts:
    """Prompts as gpt-oss's chat template writes them; needs no tokenizer."""

    def __init__(self, date: str | None = None, model_identity: str | None = None) -> None:
        self.date = date or datetime.date.today().isoformat()
        self.model_identity = model_identity

    def prompt(self, messages: Messages, *, reasoning_effort: str = "medium") -> str:
        return render(
            messages,
            date=self.date,
            reasoning_effort=reasoning_effort,
            model_identity=self.model_identity,
        )

    def of_text(
        self, text: str, *, reasoning_effort: str = "medium", from_table: bool = False
    ) -> str:
        """White space behind a prompt, as editors leave it in files, is removed; not in tables."""
        if from_table:
            return _converted(text)
        if not is_harmony(text):
            return self.prompt(parse_legacy(text), reasoning_effort=reasoning_effort)
        text = text.strip()
        if text.endswith("<|end|>"):
            text += GENERATION_PROMPT
        if not text.endswith(GENERATION_PROMPT):
            raise DataError(
                f"the Harmony prompt ends in {text[-30:]!r}, not in {GENERATION_PROMPT}",
                hint="leave the assistant's message to the model",
            )
        return text


class RawPrompts:
    """Leaves prompts as tables hold them, where nobody knows yet which model will read them."""

    def prompt(self, messages: Messages, *, reasoning_effort: str = "medium") -> str:
        return json.dumps(list(messages), ensure_ascii=False)

    def of_text(
        self, text: str, *, reasoning_effort: str = "medium", from_table: bool = False
    ) -> str:
        return text


class HarmonyChat(HarmonyPrompts):
    """gpt-oss: Harmony prompts, answers in channels of their own; raises ConfigError for others."""

    family = "gpt-oss"
    pad_token = "<|endoftext|>"

    def __init__(
        self, tokenizer: Any, *, date: str | None = None, model_identity: str | None = None
    ) -> None:
        super().__init__(date, model_identity)
        self.tokenizer = tokenizer
        self.tokens = HarmonyTokens.from_tokenizer(tokenizer)
        self.stops = self.tokens.stops
        self.pad_id: int = self.tokens.endoftext

    def parse(self, ids: Iterable[int]) -> Completion:
        return parse_completion(ids, self.tokens, self.decode)

    def decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def reader(self) -> Reader:
        return ChannelText(self.tokens, self.decode)


def _converted(text: str) -> str:
    if not is_harmony(text):
        raise DataError(
            "the prompt is not in Harmony form", hint="run gptoss convert-harmony first"
        )
    if not text.endswith(GENERATION_PROMPT):
        raise DataError(
            f"the prompt does not end with {GENERATION_PROMPT}, where gpt-oss answers",
            hint="remove what follows it, or convert the original text again",
        )
    return text
