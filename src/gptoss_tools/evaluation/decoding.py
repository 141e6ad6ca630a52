"""Draws that depend on the row and the seed alone, and text that arrives while it is generated.

`generate` is always run greedily; sampling is a last logits processor that has already chosen. So
a row's draws are the same in any batch, on any day. Loading and parsing are in evaluation.policy.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from gptoss_tools.chat.families import Chat
from gptoss_tools.settings import DecodingSettings

_DONE = object()


class DrawByRow(LogitsProcessor):
    """Choose each row's token from its own uniform numbers, by inverting the distribution.

    Leaves one finite logit per row, so a greedy search must take it. Expects logits that the
    warpers have already shaped, [B, V]; `prompt_length` is the padded one.
    """

    def __init__(self, seed: int, rows: Sequence[int], steps: int, prompt_length: int) -> None:
        draws = [torch.rand(steps, generator=_generator(seed, row)) for row in rows]
        self.uniform = torch.stack(draws)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        # float64: with 200,000 float32 terms the tail of the sum would be noise.
        cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        target = self.uniform[:, step].to(scores.device).double() * cumulative[:, -1]
        chosen = torch.searchsorted(cumulative, target[:, None], right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _generator(seed: int, row: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{row}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def processors(
    decoding: DecodingSettings, rows: Sequence[int], steps: int, prompt_length: int
) -> LogitsProcessorList:
    """The logits processors of these settings; none for greedy decoding."""
    chain = LogitsProcessorList()
    if not decoding.sample:
        return chain
    if decoding.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        chain.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1.0:
        chain.append(TopPLogitsWarper(decoding.top_p))
    chain.append(DrawByRow(decoding.seed, rows, steps, prompt_length))
    return chain


def generation_config(chat: Chat, steps: int) -> GenerationConfig:
    """Greedy, ending at any token that ends an answer; no penalties a checkpoint may ask for."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=steps,
        eos_token_id=list(chat.stops),
        pad_token_id=chat.pad_id,
        use_cache=True,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )


class _Queue(BaseStreamer):
    """Hands over each new token; the prompt, which comes first, is left out."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            for token in value.flatten().tolist():
                self.queue.put(token)
        self.prompt_seen = True

    def end(self) -> None:
        self.queue.put(_DONE)


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


def stream_tokens(generate: Callable[..., Any]) -> Iterator[int]:
    """Yield tokens while `generate(streamer=, stopping_criteria=)` makes them in a thread.

    An iterator that is closed early stops the generation; an error in the thread is raised here.
    """
    streamer, stop = _Queue(), _Stop()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            generate(streamer=streamer, stopping_criteria=[stop])
        except BaseException as error:
            errors.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (token := streamer.queue.get()) is not _DONE:
            yield token
    finally:
        stop.event.set()
        thread.join()
    if errors:
        raise errors[0]
