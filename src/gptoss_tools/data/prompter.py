"""From an instruction and its answer to the text a model reads and the text it learns to say.

gpt-oss reads Harmony, other models the chat template of their tokenizer, and any model a template
with headings (chat.prompt_templates). `choose_prompter` makes one of three classes, which differ in
`pair` alone: example -> (prompt, completion), the completion with the token that ends an answer.
Where examples come from: data.instructions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gptoss_tools.chat.completions import split_text
from gptoss_tools.chat.harmony import find_special, render
from gptoss_tools.chat.harmony_reading import read_harmony
from gptoss_tools.chat.prompt_templates import Template, load_template
from gptoss_tools.chat.template_prompts import TemplatePrompts, special_texts
from gptoss_tools.data.instruction_rows import Conversation, Example, Instruction, Rendered
from gptoss_tools.errors import ConfigError, DataError


class Prompter(Protocol):
    """What turns an example into two texts; DataError, without file and row, where it cannot."""

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own first token belongs before the prompt."""
        ...

    def pair(self, example: Example) -> tuple[str, str]:
        """The text that is read, and the text that is learned."""
        ...


def choose_prompter(
    name: str,
    tokenizer: Any,
    *,
    harmony: bool,
    date: str,
    reasoning_effort: str = "medium",
    model_identity: str | None = None,
) -> Prompter:
    """The prompter of a template's name or file; `auto` is `chat` where there is one, else alpaca.

    `harmony`: the model is a gpt-oss. `date` (YYYY-MM-DD) stands where a chat template prints
    today's. Raises ConfigError for an unknown name, a wrong file, or `chat` without a template.
    """
    if name == "auto":
        name = "chat" if harmony or tokenizer.chat_template else "alpaca"
    if name != "chat":
        return TemplatePrompter(
            load_template(name), tokenizer.eos_token or "", special_texts(tokenizer)
        )
    if harmony:
        return HarmonyPrompter(date, reasoning_effort, model_identity)
    if not tokenizer.chat_template:
        raise ConfigError(
            "prompt_template is chat, and the tokenizer has no chat template",
            hint="--prompt-template alpaca, or a JSON file of your own",
        )
    prompts = TemplatePrompts(tokenizer, date=date, model_identity=model_identity)
    return ChatPrompter(prompts, reasoning_effort)


@dataclass(frozen=True)
class TemplatePrompter:
    """Headings around an instruction; `end` is the tokenizer's end of text, after every answer."""

    template: Template
    end: str
    specials: re.Pattern[str] | None = None
    adds_bos: bool = field(default=True, init=False)

    def pair(self, example: Example) -> tuple[str, str]:
        """Conversations must be one question and its answer; instructions may stand before it."""
        if isinstance(example, Rendered):
            raise _only_harmony()
        if isinstance(example, Conversation):
            example = _as_instruction(example)
        parts = (example.instruction, example.input, example.output)
        _refuse_specials(parts, self.specials)
        prompt = self.template.generate_prompt(example.instruction, example.input)
        return prompt, example.output + self.end


@dataclass(frozen=True)
class HarmonyPrompter:
    """Harmony as gpt-oss's chat template writes it, the answer in the final channel."""

    date: str
    reasoning_effort: str = "medium"
    model_identity: str | None = None
    adds_bos: bool = field(default=False, init=False)

    def pair(self, example: Example) -> tuple[str, str]:
        """A `thinking` in the last message is learned too, in the analysis channel before it."""
        if isinstance(example, Rendered):
            return example.prompt, _whole_answer(example.answer)
        *before, last = _as_messages(example)
        prompt = render(
            before,
            date=self.date,
            reasoning_effort=self.reasoning_effort,
            model_identity=self.model_identity,
        )
        return prompt, harmony_answer(last["content"], last.get("thinking", ""))


def _whole_answer(answer: str) -> str:
    """An answer to a Harmony prompt: plain text, or Harmony from its first channel on."""
    if not answer.startswith("<|channel|>"):
        return harmony_answer(answer)
    return answer if answer.endswith("<|return|>") else answer + "<|return|>"


def harmony_answer(content: str, thinking: str = "") -> str:
    """What gpt-oss writes after `<|start|>assistant` to say this."""
    for text in (thinking, content):
        if special := find_special(text):
            raise DataError(
                f"the answer contains {special}, which gpt-oss would read as a special token"
            )
    analysis = ""
    if thinking:
        analysis = f"<|channel|>analysis<|message|>{thinking}<|end|><|start|>assistant"
    return f"{analysis}<|channel|>final<|message|>{content}<|return|>"


class ChatPrompter:
    """A tokenizer's own chat template."""

    adds_bos = False  # a chat template writes it itself

    def __init__(self, prompts: TemplatePrompts, reasoning_effort: str = "medium") -> None:
        self.prompts, self.effort = prompts, reasoning_effort

    def pair(self, example: Example) -> tuple[str, str]:
        """What the template writes after the last prompt, up to the token that ends the answer."""
        messages = _as_messages(example)
        prompt = self.prompts.prompt(messages[:-1], reasoning_effort=self.effort)
        known = [self.prompts.checked(place, message) for place, message in enumerate(messages)]
        whole = self.prompts.render(known, self.effort, add_generation_prompt=False)
        if not whole.startswith(prompt) or len(whole) == len(prompt):
            raise DataError(
                "the tokenizer's chat template writes the prompt differently before an answer",
                hint="--prompt-template alpaca, or a JSON file of your own",
            )
        answer, end = whole[len(prompt) :], self.prompts.tokenizer.eos_token
        if end and end in answer:  # templates put a line break behind it, which is never generated
            answer = answer[: answer.rindex(end) + len(end)]
        return prompt, answer


def _refuse_specials(texts: Sequence[str], specials: re.Pattern[str] | None) -> None:
    for text in texts:
        if specials and (found := specials.search(text)):
            raise DataError(f"it contains {found[0]}, which the tokenizer reads as a special token")


def _only_harmony() -> DataError:
    return DataError(
        "the prompt is Harmony text, which only gpt-oss with its own template reads",
        hint="--prompt-template chat with a gpt-oss model, or data without Harmony markers",
    )


def _as_messages(example: Example) -> list[dict[str, str]]:
    if isinstance(example, Rendered):
        said = split_text(_whole_answer(example.answer))
        last = {"role": "assistant", "content": said.final or ""}
        if thinking := said.channel_text("analysis"):
            last["thinking"] = thinking
        return [*read_harmony(example.prompt), last]
    if isinstance(example, Conversation):
        return [dict(message) for message in example.messages]
    said = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
    return [{"role": "user", "content": said}, {"role": "assistant", "content": example.output}]


def _as_instruction(example: Conversation) -> Instruction:
    roles = [message["role"] for message in example.messages]
    if roles[-2:] != ["user", "assistant"] or roles[:-2] not in ([], ["system"], ["developer"]):
        raise DataError(
            f"the conversation ({', '.join(roles)}) does not fit a template of one question",
            hint="--prompt-template chat",
        )
    if "thinking" in example.messages[-1]:
        raise DataError(
            "the answer comes with a thinking, for which this template has no place",
            hint="--prompt-template chat",
        )
    *before, answer = (message["content"] for message in example.messages)
    return Instruction("\n\n".join(before), "", answer)
