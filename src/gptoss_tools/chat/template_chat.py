"""The answers of chat models other than gpt-oss, and which texts are prompts of theirs already.

An answer is everything up to the token that ends it. Where the model thinks between `<think>` and
`</think>`, what is between them is the analysis, the rest the final answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gptoss_tools.chat.channel_text import ThoughtText
from gptoss_tools.chat.completions import Completion, Message, Stop
from gptoss_tools.chat.harmony_reading import messages_of_text
from gptoss_tools.chat.template_prompts import CLOSE, OPEN, TemplatePrompts
from gptoss_tools.errors import ConfigError, DataError

_QUESTION, _ANSWER = "QUESTION", "ANSWER"


class TemplateChat(TemplatePrompts):
    """A tokenizer's chat template, and the answers of the model that reads what it writes.

    Answers are read as those to prompts of `reasoning_effort`: whether a thought has begun depends
    on it. Raises ConfigError for a template that does not open an answer or has no switch for the
    effort `none`, and where no token ends an answer.
    """

    family = "chat template"

    def __init__(
        self,
        tokenizer: Any,
        *,
        date: str | None = None,
        model_identity: str | None = None,
        reasoning_effort: str = "medium",
        generation_config: Any = None,
    ) -> None:
        super().__init__(tokenizer, date=date, model_identity=model_identity)
        self.tail = self._tail(reasoning_effort)
        self.thinking = self.tail.rfind(OPEN) > self.tail.rfind(CLOSE)
        opens, closes = self._token(OPEN), self._token(CLOSE)
        self.tags = None if opens is None or closes is None else (opens, closes)
        self.stops = self._stops(generation_config)
        first = tokenizer.convert_ids_to_tokens(next(iter(self.stops)))
        self.pad_token: str = str(tokenizer.pad_token or tokenizer.eos_token or first)
        self.pad_id: int = int(tokenizer.convert_tokens_to_ids(self.pad_token))

    def of_text(
        self, text: str, *, reasoning_effort: str = "medium", from_table: bool = False
    ) -> str:
        """What ends where an answer begins is written already; Harmony is read back before."""
        if text.endswith(self.tail):
            return text
        return self.prompt(messages_of_text(text), reasoning_effort=reasoning_effort)

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

    def _tail(self, effort: str) -> str:
        """What the template writes behind the last question, where the answer begins."""
        question = [{"role": "user", "content": _QUESTION}]
        try:
            text = self.render(question, effort)
            if effort == "none" and text == self.render(question):
                raise ConfigError(
                    "reasoning_effort is none, and the model's chat template has no switch for it",
                    hint="leave it out: the model thinks, or not, as it was trained to",
                )
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
        listed = _listed(getattr(generation_config, "eos_token_id", None))
        for end in (*_listed(self.tokenizer.eos_token_id), *listed):
            stops.setdefault(end, "endoftext")
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
        found: Any = self.tokenizer.convert_tokens_to_ids(text)
        if found is None or found == self.tokenizer.unk_token_id:
            return None
        return int(found)


def _listed(ends: Any) -> list[int]:
    return [] if ends is None else [int(end) for end in ends] if isinstance(ends, list) else [ends]
