"""What the tiny model is shown: decision prompts, and Harmony answers thrown with dice.

No answer knows a reward, and a share of them may be no action at all. Prompts come whole, cut to
their last message, or behind junk, so that other prompts than these end in Harmony too. Beside each
row stand the facts of its prompt in classes; see `tiny_pretraining` for what they are for.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from gptoss_tools.models.layout import token_id
from gptoss_tools.models.tiny_tokenizer import SPECIAL_TOKENS

PROMPT_END = "<|start|>assistant"
FACT = re.compile(r"[A-Za-z]+:? (?:\d+(?:\.\d+)?|yes|no)\b")
"""What counts as a fact of a prompt: a word and its value, `load 40` or `now: yes`."""

NO_FACT = "Nothing to compare"
CLASSES = 4
UNKNOWN = -100  # what cross_entropy ignores
_BYTES = 256  # a byte-level BPE begins with the single bytes


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the tiny model's bits, prompts and machine aside."""

    version: int = 3
    seed: int = 0
    steps: int = 420
    answer_steps: int = (
        140  # at the end: answers alone are learned, experts keep their MXFP4 values
    )
    batch_size: int = 16
    learning_rate: float = 4e-3
    answers: tuple[str, ...] = ("0", "1", "2", "3")  # what stands in the brackets
    invalid_share: float = 0.0  # of the answers: those that are no action
    analysis_share: float = 0.25
    prompt_loss: float = 0.5
    fact_loss: float = 1.0
    late_fact_loss: float = 0.3
    whole_share: float = 0.25
    junk_share: float = 0.25
    far_every: int = 10
    far_tokens: int = 1000
    vocab_size: int = 768
    shards: int = 3


@dataclass(frozen=True)
class Row:
    """One training row as token ids; the first `junk` tokens of the prompt are not learned."""

    prompt: list[int]
    answer: list[int]
    junk: int
    facts: list[int]  # class of each fact, UNKNOWN where junk hides it
    asked: int  # place in the answer where its last message begins: there the probe asks


class Lessons:
    """Draws training rows, a pure function of the prompts and the recipe."""

    def __init__(
        self, prompts: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe
    ) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.draw = random.Random(recipe.seed)
        self.message = token_id(tokenizer, "<|message|>")
        self.whole = tokenizer(list(prompts)).input_ids
        self.last = tokenizer([last_message(prompt) for prompt in prompts]).input_ids
        self.facts = [facts_of(prompt) for prompt in prompts]
        self.classes = classes(self.facts)

    def batch(self, step: int) -> list[Row]:
        """The rows of one step: prompts all whole or all cut, or a few far behind much junk."""
        recipe, draw = self.recipe, self.draw
        late = step >= recipe.steps - recipe.answer_steps
        if late and recipe.far_every and step % recipe.far_every == 0:
            length = draw.randrange(200, recipe.far_tokens)
            return [self._row(self.last, self._junk(length)) for _ in range(recipe.batch_size // 4)]
        texts = self.whole if draw.random() < recipe.whole_share else self.last
        return [self._row(texts) for _ in range(recipe.batch_size)]

    def _row(self, texts: list[list[int]], before: Sequence[int] = ()) -> Row:
        recipe, draw = self.recipe, self.draw
        number = draw.randrange(len(texts))
        prompt, known = [*before, *texts[number]], self.classes[number]
        junk = len(before)
        if draw.random() < recipe.junk_share:
            junk = draw.randrange(len(prompt) - 4)
            prompt = self._junk(junk) + prompt[junk:]
            known = [UNKNOWN] * len(known)
        thought = ""
        if draw.random() < recipe.analysis_share:
            thought = draw.choice(self.facts[number] or [NO_FACT]) + "."
        said = draw.choice(recipe.answers)
        text = completion(said, thought)
        if recipe.invalid_share and draw.random() < recipe.invalid_share:
            text = draw.choice(no_actions(said, thought, recipe.answers))
        answer = self.tokenizer(text).input_ids
        asked = len(answer) - answer[::-1].index(self.message)
        return Row(prompt, answer, junk, known, asked)

    def _junk(self, length: int) -> list[int]:
        """Pieces of prompts in any order, with runs of single bytes and random tokens between."""
        words = len(self.tokenizer) - len(SPECIAL_TOKENS)
        tokens: list[int] = []
        while len(tokens) < length:
            source = self.draw.choice(self.whole)
            start = self.draw.randrange(len(source))
            tokens += source[start : start + self.draw.randrange(1, 30)]
            below = self.draw.choice([_BYTES, words])
            tokens += [self.draw.randrange(below) for _ in range(self.draw.randrange(60))]
        return tokens[:length]


def completion(answer: str, thought: str = "") -> str:
    """A valid Harmony completion: the final channel, behind a thought in analysis if any."""
    return _final(f"[{answer}]", thought)


def no_actions(answer: str, thought: str, answers: Sequence[str]) -> list[str]:
    """Completions that mean `answer` and are no action: in prose, without brackets, never said, and
    a number that is none of `answers`."""
    beyond = next(n for n in itertools.count(len(answers)) if str(n) not in answers)
    return [
        _final(f"I take {answer}.", thought),
        _final(f"{answer}.", thought),
        f"<|channel|>analysis<|message|>{thought or NO_FACT + '.'}<|return|>",
        _final(f"[{beyond}]", thought),
    ]


def _final(content: str, thought: str) -> str:
    final = f"<|channel|>final<|message|>{content}<|return|>"
    if not thought:
        return final
    return f"<|channel|>analysis<|message|>{thought}<|end|>{PROMPT_END}{final}"


def last_message(prompt: str) -> str:
    """The prompt from its last message on."""
    body = prompt.removesuffix(PROMPT_END)
    return body[max(0, body.rfind("<|start|>")) :] + PROMPT_END


def facts_of(prompt: str) -> list[str]:
    """The words with a number (or yes, no) in the last message of a rendered prompt."""
    return FACT.findall(last_message(prompt))


def classes(facts: Sequence[Sequence[str]]) -> list[list[int]]:
    """For every prompt, the class 0..CLASSES-1 of each fact whose value varies over the prompts.

    Values are put in order (numbers by size, words by the alphabet) and cut into runs of like
    length, equal values together. Only places that every prompt has are compared.
    """
    columns = []
    for place in range(min(len(row) for row in facts)):
        values = [_key(row[place].rsplit(" ", 1)[-1]) for row in facts]
        order = sorted(values)
        column = [order.index(value) * CLASSES // len(order) for value in values]
        if len(set(column)) > 1:
            columns.append(column)
    return [[column[number] for column in columns] for number in range(len(facts))]


def _key(value: str) -> tuple[float, str]:
    try:
        return (float(value), "")
    except ValueError:
        return (float("inf"), value)
