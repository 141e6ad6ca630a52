"""Chat models other than gpt-oss, spoken to through the chat template of their own tokenizer.

An answer is everything up to the token that ends it. Where the model thinks between `<think>` and
`</think>`, what is between them is the analysis, the rest the final answer.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from gptoss_tools.core.channel_text import ThoughtText
from gptoss_tools.core.completions import Completion, Message, Stop
from gptoss_tools.core.harmony import is_harmony, parse_legacy
from gptoss_tools.core.harmony_reading import read_harmony
from gptoss_tools.errors import ConfigError, DataError, first_line

OPEN, CLOSE = "<think>", "</think>"
_QUESTION, _ANSWER = "QUESTION", "ANSWER"
_ROLES = ("system", "developer", "user", "assistant", "tool")


class TemplateChat:
    """A tokenizer's chat template, with its date pinned where it prints today's.

    Raises ConfigError for a template that does not open an answer, or where no token ends one.
    """

    family = "chat template"

    def __init__(
        self,
        tokenizer: Any,
        *,
        date: str | None = None,
        model_identity: str | None = None,
        generation_config: Any = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.specials = special_texts(tokenizer)
        self.variables: dict[str, Any] = {"strftime_now": _day(date).strftime}
        if model_identity is not None:
            if "model_identity" not in str(tokenizer.chat_template):
                raise ConfigError(
                    "model_identity is given, and the model's chat template has no place for it",
                    hint="say it in a system message",
                )
            self.variables["model_identity"] = model_identity
        self.tail = self._tail()
        self.thinking = self.tail.rfind(OPEN) > self.tail.rfind(CLOSE)
        opens, closes = self._token(OPEN), self._token(CLOSE)
        self.tags = None if opens is None or closes is None else (opens, closes)
        self.stops = self._stops(generation_config)
        first = tokenizer.convert_ids_to_tokens(next(iter(self.stops)))
        self.pad_token: str = str(tokenizer.pad_token or tokenizer.eos_token or first)
        self.pad_id: int = int(tokenizer.convert_tokens_to_ids(self.pad_token))

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], *, reasoning_effort: str = "medium"
    ) -> str:
        """The messages as the template writes them; each must be found in what it wrote."""
        if not messages:
            raise DataError("the prompt has no messages")
        said = [self._checked(place, message) for place, message in enumerate(messages)]
        text = self.render(said, add_generation_prompt=True, reasoning_effort=reasoning_effort)
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

    def of_text(
        self, text: str, *, reasoning_effort: str = "medium", from_table: bool = False
    ) -> str:
        """What ends where an answer begins is written already; Harmony is read back before."""
        if text.endswith(self.tail):
            return text
        messages = read_harmony(text) if is_harmony(text) else parse_legacy(text)
        return self.prompt(messages, reasoning_effort=reasoning_effort)

    def parse(self, ids: Iterable[int]) -> Completion:
        """Thoughts in `analysis`, the rest in `final`; a thought that never ends leaves no final.

        What stands before a closing tag is a thought, also where none was opened.
        """
        ids = [int(i) for i in ids]
        end = next((at for at, token in enumerate(ids) if token in self.stops), None)
        stop: Stop = "none" if end is None else self.stops[ids[end]]
        ids, complete = ids[:end], end is not None
        if self.tags is not None:
            thoughts, said, thinking = self._split(ids)
        elif self.thinking:
            thought, closed, said = self.decode(ids).partition(CLOSE)
            thoughts, thinking = [thought], not closed
        else:
            thoughts, said, thinking = [], self.decode(ids), False
        messages = [Message("analysis", text.strip()) for text in thoughts[:-1] if text.strip()]
        if thoughts:
            whole = complete and not thinking
            messages.append(Message("analysis", thoughts[-1].strip(), complete=whole))
        if not thinking:
            text = said.lstrip() if thoughts else said
            messages.append(Message("final", text, complete=complete))
        elif said.strip():
            messages.insert(0, Message(None, said, complete=False))
        return Completion(tuple(messages), stop)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def reader(self) -> ThoughtText:
        """A new reader for one answer."""
        return ThoughtText(self.decode, self.stops, self.tags, CLOSE, self.thinking)

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """What the template makes of messages; DataError where it refuses them."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, **self.variables, **options
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the tokenizer's chat template refuses the messages: {first_line(error)}"
            ) from error

    def _split(self, ids: list[int]) -> tuple[list[str], str, bool]:
        """Thoughts, what was said outside of them, and whether the last thought goes on."""
        assert self.tags is not None
        opens, closes = self.tags
        thoughts, said, here, thinking = [], [], [], self.thinking
        for token in ids:
            if token == closes:
                thoughts.append(self.decode(here))
                here, thinking = [], False
            elif token == opens and not thinking:
                said.append(self.decode(here))
                here, thinking = [], True
            else:
                here.append(token)
        (thoughts if thinking else said).append(self.decode(here))
        return thoughts, "".join(said), thinking

    def _checked(self, place: int, message: Mapping[str, Any]) -> dict[str, Any]:
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

    def _tail(self) -> str:
        """What the template writes behind the last question, where the answer begins."""
        question = [{"role": "user", "content": _QUESTION}]
        try:
            text = self.render(question, add_generation_prompt=True)
        except DataError as error:
            raise ConfigError(f"the model cannot be asked anything: {error}") from error
        tail = text.rpartition(_QUESTION)[2]
        if _QUESTION not in text or not tail.strip():
            raise ConfigError(
                "the tokenizer's chat template does not say where an answer begins",
                hint="a chat template writes something behind the user's message",
            )
        return tail

    def _stops(self, generation_config: Any) -> dict[int, Stop]:
        """The token the template puts behind an answer, and all that end a text."""
        stops: dict[int, Stop] = {}
        if (token := self._end_of_turn()) is not None:
            stops[token] = "return"
        ends = getattr(generation_config, "eos_token_id", None)
        ends = [] if ends is None else ends if isinstance(ends, Sequence) else [ends]
        for end in (self.tokenizer.eos_token_id, *ends):
            if end is not None:
                stops.setdefault(int(end), "endoftext")
        if not stops:
            raise ConfigError(
                "no token ends an answer of this model",
                hint="its tokenizer needs an eos_token",
            )
        return stops

    def _end_of_turn(self) -> int | None:
        pair = [("user", _QUESTION), ("assistant", _ANSWER)]
        messages = [{"role": role, "content": content} for role, content in pair]
        try:
            text = self.render(messages, add_generation_prompt=False)
        except DataError:
            return None
        behind = text.rpartition(_ANSWER)[2].lstrip()
        added = sorted(self.tokenizer.added_tokens_decoder.items(), key=lambda t: -len(str(t[1])))
        return next((int(i) for i, token in added if behind.startswith(str(token))), None)

    def _token(self, text: str) -> int | None:
        """The id of a text that is a single token, None where it is not."""
        found = self.tokenizer.convert_tokens_to_ids(text)
        unknown = found is None or found == self.tokenizer.unk_token_id
        return None if unknown else int(found)


def special_texts(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds any of the texts that a tokenizer reads as special tokens."""
    tokens = tokenizer.added_tokens_decoder.values()
    names = [re.escape(str(token)) for token in tokens if token.special]
    return re.compile("|".join(names)) if names else None


def _day(date: str | None) -> datetime.datetime:
    try:
        day = datetime.date.today() if date is None else datetime.date.fromisoformat(date)
    except ValueError:
        raise ConfigError(f"date {date!r} is not a day", hint="write it as YYYY-MM-DD") from None
    return datetime.datetime(day.year, day.month, day.day)
