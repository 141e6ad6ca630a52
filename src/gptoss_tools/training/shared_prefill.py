"""Generate with each distinct prompt read once: its cache is then repeated for every completion.

A group of G completions costs one prefill instead of G. Draws are untouched: nothing random happens
before the first token, so the same generator gives the same tokens up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache


@contextlib.contextmanager
def read_prompts_once(model: Any) -> Iterator[None]:
    """Within this block `model.generate` prefills distinct prompts only."""
    plain = model.generate

    def generate(*, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        cache = prefill(model, input_ids, attention_mask)
        if cache is not None:
            options["past_key_values"] = cache
        return plain(input_ids=input_ids, attention_mask=attention_mask, **options)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate


@torch.no_grad()
def prefill(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> DynamicCache | None:
    """Return the cache of all but the last prompt token, for [B, P] prompts padded left.

    None where it would save nothing: no prompt comes twice, or each is a single token.
    """
    distinct, group = torch.unique(input_ids, dim=0, return_inverse=True)
    if len(distinct) == len(input_ids) or input_ids.size(1) < 2:
        return None
    first = torch.zeros(len(distinct), dtype=torch.long, device=group.device)
    first[group] = torch.arange(len(group), device=group.device)
    mask = attention_mask[first, :-1]
    cache = DynamicCache(config=model.config)
    model(
        input_ids=distinct[:, :-1],
        attention_mask=mask,
        position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(group)
    return cache
