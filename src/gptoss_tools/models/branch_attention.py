"""Attention over a row of groups along their branches.

No mask of the whole row is built, and nothing is computed only to be masked away but the triangles
above each diagonal. A sink, where a model has them, is one more key, with its own score and a value
of 0. `follow_branches` teaches a model to attend so wherever its forward is given `branches`;
without them it attends as before. On the CPU, and where asked, this is plain PyTorch; else it is
flex attention, which keeps no scores at all, with what is seen as a block mask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.attention import flex_attention as flex
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.branches import UNLIMITED, Branches, Group
from gptoss_tools.models.shared_cache import Shared, attend_shared


def fuses(attn_implementation: str, device: torch.device) -> bool:
    """Say whether a setting means flex attention for branches: `auto` does on a GPU.

    Raises ConfigError where that has no gradients.
    """
    if attn_implementation == "flex_attention" and device.type != "cuda":
        raise ConfigError(
            f"attn_implementation flex_attention has no gradients on {device.type}",
            hint="--attn-implementation auto",
        )
    if attn_implementation == "auto":
        return device.type == "cuda"
    return attn_implementation == "flex_attention"


def follow_branches(model: Any) -> None:
    """Let `model` attend along `branches` where its forward is given them; else as it did.

    It also reads caches that rows share. Raises ConfigError where attention is neither eager nor
    SDPA.
    """
    model = getattr(model, "get_base_model", lambda: model)()  # below an adapter
    before = model.config._attn_implementation or "eager"
    if before.endswith("_or_branches"):
        return
    if before not in ("eager", "sdpa"):
        raise ConfigError(
            f"attention {before} cannot be told to follow branches",
            hint="--attn-implementation auto",
        )
    name = f"{before}_or_branches"

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        branches = more.pop("branches", None)
        if branches is not None:
            return attend_branches(module, query, key, value, branches, **more), None
        if isinstance(key, Shared):
            return attend_shared(query, key, value, mask, **more), None
        return _attention_of(module, before)(module, query, key, value, mask, **more)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    model.set_attn_implementation(name)


def _attention_of(module: Any, name: str) -> Callable[..., Any]:
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def attend_branches(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    branches: Branches,
    *,
    scaling: float,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> torch.Tensor:
    """Return [1, T, heads, D] from queries [1, heads, T, D] and keys and values [1, kv, T, D].

    `s_aux`: [heads], the sinks. Dropout on attention is refused: no gpt-oss has any.
    """
    if dropout:
        raise ValueError("attention dropout is not known to branches")
    if branches.fused:
        return _flex(query, key, value, branches, scaling, sliding_window, s_aux).transpose(1, 2)
    plain = _Plain(branches, sliding_window, s_aux is not None)
    return plain(query[0] * scaling, key[0], value[0], s_aux).transpose(0, 1).unsqueeze(0)


CHUNK = 256
"""Queries that are scored together: the keys behind the last of them are not."""


@dataclass(frozen=True)
class _Plain:
    """Attention in products of [kv, heads / kv, ...] queries and [kv, ...] keys and values.

    With sinks, queries have a last column for them and keys a 0 there.
    """

    branches: Branches
    window: int | None
    sinks: bool

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [heads, T, D] from the scaled queries of that shape, and [kv, T, D] each."""
        q = q.unflatten(0, (len(k), -1))
        if sinks is not None:
            column = sinks.to(q).view(len(k), -1, 1, 1).expand(*q.shape[:3], 1)
            q, k = torch.cat([q, column], -1), torch.nn.functional.pad(k, (0, 1))
        parts: list[torch.Tensor] = []
        begin = 0
        for group in self.branches.groups:
            middle, end = begin + group.trunk, begin + group.length
            if group.trunk:  # a branch with nothing before it
                nothing = k[:, None, :0], v[:, None, :0]
                own = (x[..., None, begin:middle, :] for x in (q, k, v))
                parts.append(self.after(nothing, list(own)))
            if group.branches:
                first = max(begin, middle - (self.window or UNLIMITED) + 1)
                parts.append(
                    self.behind(group, q[:, :, middle:end], k[:, first:end], v[:, first:end])
                )
            begin = end
        return torch.cat(parts, 2).flatten(0, 1)

    def behind(
        self, group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attention of the tokens behind a trunk; k and v begin with the last of the trunk."""
        reach = k.size(1) - q.size(2)
        trunk = k[:, None, :reach], v[:, None, :reach]
        own = q, k[:, reach:], v[:, reach:]
        stacks = self.branches.stacks(group)
        if stacks is None:
            number = len(group.branches)
            return self.after(trunk, [x.unflatten(-2, (number, -1)) for x in own])
        parts = []
        for places in stacks[0]:
            found = [x.index_select(-2, places.flatten()) for x in own]
            parts.append(self.after(trunk, [x.unflatten(-2, places.shape) for x in found]))
        return torch.cat(parts, 2).index_select(2, stacks[1])

    def after(self, trunk: tuple[torch.Tensor, ...], own: list[torch.Tensor]) -> torch.Tensor:
        """Attention of a stack, [.., branches, C, D] each, on the trunk [kv, 1, reach, D].

        It comes as [kv, R, branches * C, D], and is computed in chunks.
        """
        q, *pair = own
        out = []
        for begin in range(0, q.size(3), CHUNK):
            end = min(begin + CHUNK, q.size(3))
            far = (self.window or UNLIMITED) - 1 - begin  # how far the first of them sees before
            k, v = (
                torch.cat(
                    [
                        before[:, :, max(0, before.size(2) - max(0, far)) :].expand(
                            -1, x.size(1), -1, -1
                        ),
                        x[:, :, max(0, -far) : end],
                    ],
                    2,
                )
                for before, x in zip(trunk, pair, strict=True)
            )
            out.append(self.stack(q[:, :, :, begin:end], k, v))
        return torch.cat(out, 3).flatten(2, 3)

    def stack(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of [kv, R, b, C, D] on [kv, b, S, D], whose last C are theirs."""
        kv, repeats, number, length, _ = q.shape
        hidden = self.branches.hidden(k.size(2) - length, length, self.window, self.sinks)
        if self.sinks:
            one = torch.nn.functional.pad(k.new_ones(1), (k.size(3) - 1, 0))
            k = torch.cat([k, one.expand(kv, number, 1, -1)], 2)
            v = torch.nn.functional.pad(v, (0, 0, 0, 1))
        q = q.transpose(1, 2).reshape(kv, number, repeats * length, -1)
        scores = (q @ k.transpose(2, 3)).unflatten(2, (repeats, length))
        scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
        chances = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype).flatten(2, 3)
        out = (chances @ v).unflatten(2, (repeats, length))
        return out.transpose(1, 2)


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    branches: Branches,
    scaling: float,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of [1, heads, T, D]; a sink takes its share afterwards, in float32."""
    kernel = _compiled() if query.device.type == "cuda" else flex.flex_attention
    heads = query.size(1)
    if heads & (heads - 1):  # flex groups heads by powers of two only
        key, value = (x.repeat_interleave(heads // x.size(1), 1) for x in (key, value))
    out, aux = kernel(
        query,
        key,
        value,
        block_mask=branches.block_mask(window),
        scale=scaling,
        enable_gqa=heads != key.size(1),
        return_aux=flex.AuxRequest(lse=True),
    )
    if sinks is None:
        return out
    lse: Any = aux.lse
    kept = torch.sigmoid(lse - sinks.float().view(1, -1, 1))
    return (out * kept.unsqueeze(-1)).to(query.dtype)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex.flex_attention)
