"""A model that answers prompts: the one generation engine behind every command that generates.

Loads a base model, an export, an adapter or a run; answers in batches or streams one answer; reads
channels and action. Prompts of a batch are sorted by length, answers carry their row's number.
Comparing answers with a table is in evaluation.scoring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gptoss_tools.chat.actions import Decision, compile_pattern, parse_action
from gptoss_tools.chat.completions import Completion
from gptoss_tools.chat.families import Chat, chat_of
from gptoss_tools.errors import DataError, MachineError
from gptoss_tools.evaluation.decoding import generation_config, processors, stream_tokens
from gptoss_tools.evaluation.sources import Prompt, Source, as_harmony, as_prompt, find_source
from gptoss_tools.models.experts import held_as
from gptoss_tools.models.loading import (
    context_of,
    load_model,
    load_tokenizer,
    load_with_adapter,
    quiet,
)
from gptoss_tools.settings import DecodingSettings, ModelSettings, PromptSettings

__all__ = ["Answer", "Policy", "Prompt", "Source", "as_harmony", "find_source", "load_policy"]


@dataclass(frozen=True)
class Answer:
    """One completion: `index` is the prompt's place, `text` keeps the markers, `tokens` counts.

    Where no number of actions was given, `decision` may be any; `seconds` is the row's share of
    its batch's time.
    """

    index: int
    text: str
    completion: Completion
    decision: Decision
    tokens: int
    seconds: float


def load_policy(
    target: str | Path | Source,
    *,
    base: str | None = None,
    model: ModelSettings | None = None,
    cache_dir: Path | None = None,
    load: Callable[..., Any] = load_model,
) -> Policy:
    """Load `target` (see `find_source`) for inference; of `model`, all but its `model` counts.

    `load` gives the base model. Errors are those of `models.loading`.
    """
    source = target if isinstance(target, Source) else find_source(target, base)
    model = model or ModelSettings.model_validate({})
    options: dict[str, Any] = {
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "experts_implementation": model.experts_implementation,
        "device": model.device,
        "experts": model.experts,
        "for_training": False,
        "cache_dir": cache_dir,
    }
    tokenizer = load_tokenizer(source.base, cache_dir=cache_dir)
    chat_of(tokenizer)  # a model that answers nobody is refused before its weights load
    if source.adapter is None:
        loaded = load(source.base, **options)
    else:
        loaded = load_with_adapter(source.base, source.adapter, load=load, **options)
    loaded.eval()
    return Policy(loaded, tokenizer, source)


def packed_by_itself(policy: Policy, wanted: str) -> str | None:
    """Return a sentence where `auto` has left the experts packed, else None."""
    if wanted != "auto" or held_as(policy.model) != "packed":
        return None
    return "experts stay packed in MXFP4: there is not memory enough to dequantise them"


@dataclass
class Stream:
    """Iterate for (channel, text) pieces; afterwards `answer` is the whole of it."""

    pieces: Generator[tuple[str | None, str], None, Answer]
    _answer: Answer | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[tuple[str | None, str]]:
        self._answer = yield from self.pieces

    @property
    def answer(self) -> Answer:
        """The whole answer; ValueError before the last piece was taken."""
        if self._answer is None:
            raise ValueError("the answer is not complete: take all its pieces first")
        return self._answer


@dataclass
class Policy:
    """A model in eval mode, its tokenizer, and where they came from."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    source: Source

    def __post_init__(self) -> None:
        self.chat = self._chat(None)

    def answer(
        self,
        prompts: Sequence[Prompt],
        n_actions: int | Sequence[int] | None = None,
        *,
        names: Sequence[Sequence[str]] | None = None,
        decoding: DecodingSettings | None = None,
        prompt: PromptSettings | None = None,
        action_pattern: str | None = None,
        draw_as: Sequence[int] | None = None,
    ) -> Iterator[Answer]:
        """Answer all prompts, longest first; sort by `index` for their own order.

        Nothing is generated before every prompt has been checked. Row i draws from (seed, i) alone,
        or from (seed, draw_as[i]), so that a part of a table draws as it does in the whole. `names`
        are each row's action names, empty where its actions are numbered.
        Raises DataError naming the 1-based prompt that does not fit, MachineError if a batch does
        not fit into memory.
        """
        decoding = decoding or DecodingSettings.model_validate({})
        pattern = compile_pattern(action_pattern)
        counts = _per_row(n_actions, len(prompts))
        named = [()] * len(prompts) if names is None else names
        if len(named) != len(prompts):
            raise DataError(f"{len(named)} lists of names were given for {len(prompts)} prompts")
        chat = self._chat(prompt)
        encoded = [self._encode(p, i, prompt, chat) for i, p in enumerate(prompts)]
        order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
        for begin in range(0, len(order), decoding.batch_size):
            rows = order[begin : begin + decoding.batch_size]
            start = time.perf_counter()
            known_as = rows if draw_as is None else [draw_as[i] for i in rows]
            generated = self._generate([encoded[i] for i in rows], known_as, decoding)
            seconds = (time.perf_counter() - start) / len(rows)
            for i, ids in zip(rows, generated, strict=True):
                yield self._read(chat, i, ids, counts[i], named[i], pattern, seconds)

    def stream(
        self,
        prompt: Prompt,
        n_actions: int | None = None,
        *,
        names: Sequence[str] = (),
        decoding: DecodingSettings | None = None,
        settings: PromptSettings | None = None,
        action_pattern: str | None = None,
    ) -> Stream:
        """Answer one prompt while it is generated; the same tokens as `answer([prompt])` gives."""
        decoding = decoding or DecodingSettings.model_validate({})
        pattern = compile_pattern(action_pattern)
        chat = self._chat(settings)
        encoded = self._encode(prompt, 0, settings, chat)

        def pieces() -> Generator[tuple[str | None, str], None, Answer]:
            start, ids = time.perf_counter(), []
            reader = chat.reader()
            tokens = stream_tokens(lambda **more: self._call([encoded], [0], decoding, **more))
            for token in tokens:
                ids.append(token)
                if piece := reader.push(token):
                    yield piece
            if piece := reader.close():
                yield piece
            seconds = time.perf_counter() - start
            return self._read(chat, 0, ids, n_actions, names, pattern, seconds)

        return Stream(pieces())

    def _chat(self, settings: PromptSettings | None) -> Chat:
        """How this model is spoken to, with the date and identity that the settings ask for."""
        settings = settings or PromptSettings.model_validate({})
        return chat_of(
            self.tokenizer,
            date=settings.date,
            model_identity=settings.model_identity,
            reasoning_effort=settings.reasoning_effort,
            generation_config=getattr(self.model, "generation_config", None),
        )

    def _encode(
        self, prompt: Prompt, index: int, settings: PromptSettings | None, chat: Chat
    ) -> list[int]:
        try:
            text = as_prompt(prompt, chat, settings)
        except DataError as error:
            raise DataError(f"prompt {index + 1}: {error}", hint=error.hint) from error
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = context_of(self.model.config)
        if room is not None and len(ids) >= room:
            raise DataError(
                f"prompt {index + 1} has {len(ids)} tokens, and the model reads {room} in all"
            )
        return ids

    def _generate(
        self, prompts: list[list[int]], rows: Sequence[int], decoding: DecodingSettings
    ) -> list[list[int]]:
        """Generate one batch; returns ids without prompt, and without what follows the end."""
        width = max(map(len, prompts))
        generated = self._call(prompts, rows, decoding)[:, width:].tolist()
        return [self._cut(ids) for ids in generated]

    def _call(
        self,
        prompts: list[list[int]],
        rows: Sequence[int],
        decoding: DecodingSettings,
        **more: Any,
    ) -> torch.Tensor:
        width = max(map(len, prompts))
        room = context_of(self.model.config) or width + decoding.max_new_tokens
        steps = min(decoding.max_new_tokens, room - width)
        pad = [width - len(ids) for ids in prompts]
        blank = self.chat.pad_id
        ids = torch.tensor([[blank] * n + p for n, p in zip(pad, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * len(p) for n, p in zip(pad, prompts, strict=True)])
        try:
            with quiet(), torch.inference_mode():
                return self.model.generate(
                    input_ids=ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    generation_config=generation_config(self.chat, steps),
                    logits_processor=processors(decoding, rows, steps, width),
                    **more,
                )
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"{len(prompts)} prompts at once do not fit into the GPU's memory",
                hint=f"--batch-size {max(1, len(prompts) // 2)}",
            ) from error

    def _cut(self, ids: list[int]) -> list[int]:
        for place, token in enumerate(ids):
            if token in self.chat.stops:
                return ids[: place + 1]
        return ids

    def _read(
        self,
        chat: Chat,
        index: int,
        ids: list[int],
        n_actions: int | None,
        names: Sequence[str],
        pattern: Any,
        seconds: float,
    ) -> Answer:
        completion = chat.parse(ids)
        decision = parse_action(completion, n_actions, pattern, names)
        return Answer(index, self.chat.decode(ids), completion, decision, len(ids), seconds)


def _per_row(n_actions: int | Sequence[int] | None, rows: int) -> Sequence[int | None]:
    if n_actions is None or isinstance(n_actions, int):
        return [n_actions] * rows
    if len(n_actions) != rows:
        raise DataError(f"{len(n_actions)} numbers of actions were given for {rows} prompts")
    return n_actions
