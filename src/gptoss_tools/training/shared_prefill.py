"""Generate with each distinct prompt read once, and held once, for all of its completions.

A group of G completions costs one prefill and one prompt's cache instead of G. Draws are untouched:
nothing random happens before the first token, so the same generator gives the same tokens up to
rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gptoss_tools.models.branches import Branches, Group
from gptoss_tools.models.shared_cache import shared_cache
from gptoss_tools.training.shared_prefix import Branch, Piece, within


@contextlib.contextmanager
def read_prompts_once(
    model: Any, *, budget: int | None = None, fused: bool = False
) -> Iterator[None]:
    """Within this block `model.generate` prefills distinct prompts only; it follows branches."""
    plain = model.generate

    def generate(*, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        if _takes_a_cache(model, options):
            cache = prefill(model, input_ids, attention_mask, budget=budget, fused=fused)
            if cache is not None:
                options["past_key_values"] = cache
        return plain(input_ids=input_ids, attention_mask=attention_mask, **options)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate


def _takes_a_cache(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether generation goes on from a cache of ours: not without one, in beams, or in its own."""
    asked = [options.get("generation_config"), model.generation_config]
    values = {
        name: [options.get(name), *(getattr(config, name, None) for config in asked)]
        for name in ("use_cache", "num_beams", "cache_implementation")
    }
    if False in values["use_cache"] or any(values["cache_implementation"]):
        return False
    return max(number or 1 for number in values["num_beams"]) == 1


@torch.no_grad()
def prefill(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    budget: int | None = None,
    fused: bool = False,
) -> DynamicCache | None:
    """Return the cache of all but the last prompt token, for [B, P] prompts padded left.

    A forward reads at most `budget` tokens, or one prompt. None where it would save nothing: no
    prompt comes twice, or each is a single token.
    """
    distinct, first, prompt_of = _distinct(input_ids.masked_fill(attention_mask == 0, -1))
    width = input_ids.size(1) - 1
    if len(distinct) == len(input_ids) or not width:
        return None
    distinct, masks = distinct.cpu(), attention_mask[first].bool().cpu()
    pieces = [
        Piece(ids[mask].tolist(), [Branch(number, [])])
        for number, (ids, mask) in enumerate(zip(distinct, masks, strict=True))
        if mask.sum() > 1  # of one token nothing is read ahead
    ]
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []
    for row in within(pieces, budget):
        groups = tuple(Group(piece.length, ()) for piece in row)
        branches = Branches(groups, input_ids.device, fused)
        ids = [token for piece in row for token in piece.prompt[:-1]]
        read = torch.tensor([ids], device=input_ids.device)
        cache = DynamicCache()
        model(**branches.inputs(read), past_key_values=cache, use_cache=True, logits_to_keep=1)
        for number, layer in enumerate(cast(list[DynamicLayer], cache.layers)):
            pair = cast(tuple[torch.Tensor, torch.Tensor], (layer.keys, layer.values))
            if number == len(layers):
                size = (len(distinct), pair[0].size(1), width, pair[0].size(3))
                layers.append((pair[0].new_zeros(size), pair[1].new_zeros(size)))
            for padded, found in zip(layers[number], pair, strict=True):
                parts = found[0].split([group.trunk for group in groups], dim=1)
                for piece, part in zip(row, parts, strict=True):
                    padded[piece.branches[0].row, :, width - part.size(1) :] = part
    windows = _windows(model.config, len(layers))
    return shared_cache(
        [(*pair, window) for pair, window in zip(layers, windows, strict=True)], prompt_of
    )


def _distinct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distinct rows as they first come, where they do, and the number of each row's own."""
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(len(group), device=group.device)
    first = torch.full((int(group.max()) + 1,), len(group), device=group.device)
    first = first.scatter_reduce(0, group, places, "amin")
    order = torch.argsort(first)
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=order.device)
    return rows[first[order]], first[order], number[group]


def _windows(config: Any, layers: int) -> list[int | None]:
    """How far each layer sees."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
