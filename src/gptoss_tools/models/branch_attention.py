"""Attention over a row of groups, each a trunk of tokens and the branches that go on from it.

A trunk is causal by itself. A branch sees the trunk, as far back as a layer's window reaches, and
then itself, as if the two alone were a sequence; groups do not see each other. So no mask of the
whole row is built, and nothing is computed only to be masked away but the triangles above each
diagonal. A sink, where a model has them, is one more key, with its own score and a value of 0.

`follow_branches` teaches a model to attend so wherever its forward is given `branches`; without
them it attends as before. On the CPU, and where asked, this is plain PyTorch; else it is flex
attention, which keeps no scores at all, with what is seen as a block mask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch.nn.attention import flex_attention as flex
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.shared_cache import Shared, attend_shared

UNLIMITED = 2**30
"""The window of a layer that has none."""


@dataclass(frozen=True)
class Group:
    """A trunk's length and its branches' lengths; they lie in the row one behind the other."""

    trunk: int
    branches: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return self.trunk + sum(self.branches)


@dataclass(frozen=True)
class Branches:
    """The groups of a row, on the device where it is computed; `fused` asks for flex attention."""

    groups: tuple[Group, ...]
    device: torch.device | str = "cpu"
    fused: bool = False
    _made: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def positions(self) -> torch.Tensor:
        """Return [T]: every token's place in a sequence of its trunk and its own branch."""
        return self._of_tokens[2]

    def sees(self, window: int | None) -> Callable[[Any, Any], torch.Tensor]:
        """Return whether the tokens at one place see those at another: indices that broadcast."""
        group, branch, position = self._of_tokens
        edge = position - (window or UNLIMITED)  # a tensor: all windows share compiled code

        def seen(query: Any, key: Any) -> torch.Tensor:
            own = (branch[key] == 0) | (branch[key] == branch[query])
            near = (key <= query) & (position[key] > edge[query])
            return own & near & (group[key] == group[query])

        return seen

    def block_mask(self, window: int | None) -> flex.BlockMask:
        """Return what is seen as flex attention reads it."""
        if ("blocks", window) not in self._made:
            seen, size = self.sees(window), sum(group.length for group in self.groups)
            self._made["blocks", window] = flex.create_block_mask(
                lambda _batch, _head, query, key: seen(query, key),
                None,
                None,
                size,
                size,
                device=self.device,
            )
        return self._made["blocks", window]

    def padded(self, group: Group) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return [branches, longest], each token's place behind the trunk, and which are real.

        None where all branches are of one length, and reshaping does it.
        """
        if len(set(group.branches)) < 2:
            return None
        if ("places", group) not in self._made:
            lengths = torch.tensor(group.branches, device=self.device)
            columns = torch.arange(max(group.branches), device=self.device)
            real = columns < lengths.unsqueeze(1)
            begin = (lengths.cumsum(0) - lengths).unsqueeze(1)
            self._made["places", group] = (begin + columns) * real, real
        return self._made["places", group]

    def hidden(self, before: int, own: int, window: int | None, sink: bool) -> torch.Tensor:
        """Return bool[own, before + own (+ 1)]: which keys a run of `own` tokens does not see."""
        key = (before, own, window, sink)
        if key not in self._made:
            ahead = torch.arange(own, device=self.device).unsqueeze(1) - torch.arange(
                -before, own, device=self.device
            )
            out = (ahead < 0) | (ahead >= (window or UNLIMITED))
            self._made[key] = torch.nn.functional.pad(out, (0, 1)) if sink else out
        return self._made[key]

    @cached_property
    def _of_tokens(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[T] each: number of the group, of the branch in it (a trunk's is 0), position."""
        runs = [
            (number, branch, 0 if branch == 0 else group.trunk, length)
            for number, group in enumerate(self.groups)
            for branch, length in enumerate((group.trunk, *group.branches))
        ]
        table = torch.tensor(runs).T
        lengths = table[3]
        spread = table[:3].repeat_interleave(lengths, dim=1)
        within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(
            lengths
        )
        spread[2] += within
        group, branch, position = spread.to(self.device)
        return group, branch, position


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

    It also reads caches that rows share. Raises ValueError where attention is neither eager nor
    SDPA.
    """
    model = getattr(model, "get_base_model", lambda: model)()  # below an adapter
    before = model.config._attn_implementation or "eager"
    if before.endswith("_or_branches"):
        return
    if before not in ("eager", "sdpa"):
        raise ValueError(f"attention {before} cannot be told to follow branches")
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
    kv = key.size(1)
    q = (query[0] * scaling).unflatten(0, (kv, -1))  # [kv, heads / kv, T, D]
    k, v = key[0], value[0]
    if s_aux is not None:  # a column of its own turns a sink into a product
        sinks = s_aux.to(q).view(kv, -1, 1, 1).expand(*q.shape[:3], 1)
        q, k = torch.cat([q, sinks], -1), torch.nn.functional.pad(k, (0, 1))
    parts: list[torch.Tensor] = []
    begin = 0
    for group in branches.groups:
        middle, end = begin + group.trunk, begin + group.length
        if group.trunk:
            own = slice(begin, middle)
            parts += _trunk(q[:, :, own], k[:, own], v[:, own], branches, sliding_window, s_aux)
        if group.branches:
            reach = min(group.trunk, (sliding_window or UNLIMITED) - 1)
            parts.append(
                _behind(
                    q[:, :, middle:end],
                    k[:, middle - reach : end],
                    v[:, middle - reach : end],
                    branches,
                    group,
                    sliding_window,
                    s_aux,
                )
            )
        begin = end
    return torch.cat(parts, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0)


CHUNK = 256
"""Queries of a trunk that are scored together: the keys behind the last of them are not."""


def _trunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    branches: Branches,
    window: int | None,
    sinks: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Causal attention of [kv, R, T, D] queries on [kv, T, D]; the results of chunks in order."""
    out = []
    for begin in range(0, q.size(2), CHUNK):
        end = min(begin + CHUNK, q.size(2))
        first = max(0, begin - (window or UNLIMITED) + 1)
        hidden = branches.hidden(begin - first, end - begin, window, sinks is not None)
        keys, values = k[:, None, first:end], v[:, None, first:end]
        out.append(_attend(q[:, :, None, begin:end], keys, values, hidden)[:, :, 0])
    return out


def _behind(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    branches: Branches,
    group: Group,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of all branches, [kv, R, B, D]; k and v begin with the trunk's last tokens."""
    number, longest = len(group.branches), max(group.branches)
    reach = k.size(1) - q.size(2)
    padding = branches.padded(group)

    def stacked(x: torch.Tensor) -> torch.Tensor:
        """[..., B, D] as [..., branches, longest, D]."""
        if padding is None:
            return x.unflatten(-2, (number, longest))
        return x.index_select(-2, padding[0].flatten()).unflatten(-2, (number, longest))

    def extended(x: torch.Tensor) -> torch.Tensor:
        trunk = x[:, None, :reach].expand(-1, number, -1, -1)
        return torch.cat([trunk, stacked(x[:, reach:])], 2)

    hidden = branches.hidden(reach, longest, window, sinks is not None)
    out = _attend(stacked(q), extended(k), extended(v), hidden).flatten(2, 3)
    return out if padding is None else out[:, :, padding[1].flatten()]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> Any:
    """Queries [kv, R, B, C, D], keys and values [kv, B, S, D], bool[C, S (+ 1)].

    With one column more in `hidden` than keys there are sinks, in the queries' last column.
    """
    if hidden.size(1) > k.size(2):
        one = torch.nn.functional.pad(k.new_ones(1), (k.size(3) - 1, 0))
        k = torch.cat([k, one.expand(*k.shape[:2], 1, -1)], 2)
        v = torch.nn.functional.pad(v, (0, 0, 0, 1))
    kv, repeats, number, length, _ = q.shape
    q = q.transpose(1, 2).reshape(kv, number, repeats * length, -1)
    scores = (q @ k.transpose(2, 3)).unflatten(2, (repeats, length))
    scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    chances = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype).flatten(2, 3)
    return (chances @ v).unflatten(2, (repeats, length)).transpose(1, 2)


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
    out, aux = kernel(
        query,
        key,
        value,
        block_mask=branches.block_mask(window),
        scale=scaling,
        enable_gqa=query.size(1) != key.size(1),
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
