"""A cache that holds each prompt's keys and values once, however many rows go on from it.

A row's attention falls into two products: one with its prompt's keys, for all rows of a prompt at
once, and one with what the row itself has added; they meet in one softmax. A layer with a sliding
window keeps no more of either than the window reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Rows:
    """Which of the prompts, numbered from 0, each row goes on from: `prompt_of` is int64[B]."""

    def __init__(self, prompt_of: torch.Tensor) -> None:
        counts = torch.bincount(prompt_of)
        self.prompts, most = len(counts), int(counts.max())
        order = torch.argsort(prompt_of, stable=True)
        place = torch.arange(len(order), device=order.device)
        place += (torch.arange(self.prompts).to(order) * most - counts.cumsum(0) + counts)[
            prompt_of[order]
        ]
        self._rows = order.new_zeros(self.prompts * most)  # row 0 fills up, for nothing
        self._rows[place] = order
        self._place = torch.empty_like(order)
        self._place[order] = place
        self._in_order = self._rows.tolist() == list(range(len(order)))

    def by_prompt(self, x: torch.Tensor) -> torch.Tensor:
        """[B, kv, R, D] as [prompts, kv, most rows of a prompt * R, D]."""
        x = x if self._in_order else x[self._rows]
        return x.unflatten(0, (self.prompts, -1)).transpose(1, 2).flatten(2, 3)

    def by_row(self, x: torch.Tensor, repeats: int) -> torch.Tensor:
        """Undo that, whatever the last axis is; `repeats` is R."""
        x = x.unflatten(2, (-1, repeats)).transpose(1, 2).flatten(0, 1)
        return x if self._in_order else x[self._place]


class Shared(NamedTuple):
    """A layer's keys or values: of the prompts, [prompts, kv, P, D], and the rows, [B, kv, C, D].

    `width` columns of a mask are the prompts'; P and C may be shorter, and are the last of theirs.
    """

    prompts: torch.Tensor
    own: torch.Tensor
    rows: Rows
    width: int


class SharedLayer(DynamicLayer):
    """A layer's cache. `keys` and `values` [prompts, kv, P, D] are padded left."""

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, rows: Rows, window: int | None = None
    ) -> None:
        super().__init__()
        self.width, self.length = keys.size(2), 0
        reach = self.width if window is None else min(self.width, window - 1)
        self.prompts = [x[:, :, self.width - reach :].contiguous() for x in (keys, values)]
        self.rows, self.window = rows, window
        self.own: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> Any:
        """Add [B, kv, L, D] and return what the next L queries look at, as Shared."""
        begin, self.length = self.length, self.length + key_states.size(2)
        if not self.own:
            self.own = [x[:, :, :0] for x in (key_states, value_states)]
        kept = min(begin, self.window - 1) if self.window else begin
        held = []
        for number, new in enumerate((key_states, value_states)):
            before = self.own[number]
            if self.window:
                self.own[number] = torch.cat([before[:, :, before.size(2) - kept :], new], 2)
                held.append(self.own[number])
                continue
            if self.length > before.size(2):  # room for as much again
                room = before.new_empty(*before.shape[:2], 2 * self.length, before.size(3))
                room[:, :, :begin] = before[:, :, :begin]
                self.own[number] = room
            self.own[number][:, :, begin : self.length] = new
            held.append(self.own[number][:, :, : self.length])
        return tuple(
            Shared(prompts, own, self.rows, self.width)
            for prompts, own in zip(self.prompts, held, strict=True)
        )

    def get_seq_length(self) -> int:
        """Return how many columns a mask has for what is held, and was."""
        return self.width + self.length


def shared_cache(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor, int | None]], prompt_of: torch.Tensor
) -> DynamicCache:
    """Return a cache of keys, values and window of every layer, for rows of these prompts."""
    rows = Rows(prompt_of)
    cache = DynamicCache()
    own: Any = [SharedLayer(keys, values, rows, window) for keys, values, window in layers]
    cache.layers = own
    return cache


def attend_shared(
    query: torch.Tensor,
    keys: Shared,
    values: Shared,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Return [B, L, heads, D] for queries [B, heads, L, D] and a mask [B, 1, L, width + all own].

    The mask adds, or is True where a key is seen; None sees everything. `s_aux`: [heads], sinks.
    """
    kv, length = keys.own.size(1), query.size(2)
    q = (query * scaling).unflatten(1, (kv, -1)).flatten(2, 3)  # [B, kv, heads / kv * L, D]
    repeats, reach = q.size(2), keys.prompts.size(2)
    told = keys.rows.by_prompt(q) @ keys.prompts.transpose(2, 3)
    own = q @ keys.own.transpose(2, 3)
    scores = torch.cat([keys.rows.by_row(told, repeats), own], 3).unflatten(2, (-1, length))
    if mask is not None:
        seen = [mask[..., keys.width - reach : keys.width], mask[..., -own.size(3) :]]
        seen = torch.cat(seen, -1).unsqueeze(2)
        if seen.dtype == torch.bool:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        else:
            scores = scores + seen
    if s_aux is not None:
        sinks = s_aux.to(scores).view(kv, -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], -1)
    chances = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype).flatten(2, 3)
    told, own = chances[..., :reach], chances[..., reach : reach + own.size(3)]
    out = keys.rows.by_row(keys.rows.by_prompt(told) @ values.prompts, repeats) + own @ values.own
    return out.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2)
