"""Windows of tokens: cut where a pure function of seed and step says, never walked through.

A corpus is one array of tokens; its last part is measured and not learned. Nothing is stored
between draws, so a run that goes on needs only the number of its step. Raw bits of Philox are used,
which NumPy promises never to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import repeat

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from gptoss_tools.errors import DataError


class Purpose(IntEnum):
    """What a draw is for: each has a stream of its own, so measuring never shifts training."""

    TRAIN = 0
    EVAL_TRAIN = 1
    EVAL_VALIDATION = 2


@dataclass(frozen=True)
class Tokens:
    """The two parts of a corpus as int32 arrays, and the length of a window."""

    train: np.ndarray
    validation: np.ndarray
    block_size: int

    def part(self, purpose: Purpose) -> np.ndarray:
        return self.validation if purpose is Purpose.EVAL_VALIDATION else self.train

    def draw(self, purpose: Purpose, seed: int, step: int, count: int) -> np.ndarray:
        """Where the `count` windows of a step begin: int64, each drawn by itself."""
        key = np.array([seed + (purpose << 32), step], dtype=np.uint64)
        bits = np.random.Philox(key=key).random_raw(count)
        places = len(self.part(purpose)) - self.block_size
        return (bits % np.uint64(places)).astype(np.int64)

    def windows(self, purpose: Purpose, starts: np.ndarray) -> torch.Tensor:
        """The windows that begin at `starts`, each with the token after it: int64 [_B, _T + 1]."""
        places = starts[:, None] + np.arange(self.block_size + 1)
        return torch.from_numpy(self.part(purpose)[places].astype(np.int64))


def split(ids: np.ndarray, validation_share: float, block_size: int, source: str) -> Tokens:
    """Part a corpus by position; DataError where a part is shorter than one window and a token."""
    first = int(len(ids) * (1 - validation_share))
    tokens = Tokens(ids[:first], ids[first:], block_size)
    for name, part in (("training", tokens.train), ("validation", tokens.validation)):
        if len(part) <= block_size:
            raise DataError(
                f"{source}: the {name} part has {len(part)} tokens, and a window needs "
                f"{block_size + 1}",
                hint="give more text, or a smaller --block-size",
            )
    return tokens


class WindowData(Dataset):
    """The training windows by where they begin."""

    def __init__(self, tokens: Tokens, length: int):
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, starts: list[int]) -> torch.Tensor:
        return self.tokens.windows(Purpose.TRAIN, np.array(starts))


class WindowOrder(Sampler[int]):
    """Where the windows of all micro-steps begin, `rows` for each, over all processes.

    accelerate hands consecutive batches to consecutive ranks, so the windows of a step are the same
    for any number of processes. Trainer passes over the `done` first micro-steps without looking at
    them; they are not drawn again.
    """

    def __init__(
        self, tokens: Tokens, *, seed: int, rows: int, micro_steps: int, done: Callable[[], int]
    ):
        self.tokens, self.seed, self.rows = tokens, seed, rows
        self.micro_steps, self.done = micro_steps, done

    def __len__(self) -> int:
        return self.micro_steps * self.rows

    def __iter__(self) -> Iterator[int]:
        done = self.done()
        yield from repeat(0, done * self.rows)
        for step in range(done, self.micro_steps):
            yield from self.tokens.draw(Purpose.TRAIN, self.seed, step, self.rows).tolist()


def collate(windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Part windows into what is shown and what is asked: the next token at every place."""
    return {"input_ids": windows[:, :-1], "targets": windows[:, 1:]}
