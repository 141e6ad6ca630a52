"""How groups lie in a row, each a trunk of tokens and the branches that go on from it.

A trunk is causal by itself. A branch sees the trunk, as far back as a layer's window reaches, and
then itself, as if the two alone were a sequence; groups do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

UNLIMITED = 2**30
"""The window of a layer that has none."""
SHORT = 64
"""Up to this length a stack more would cost more than padding."""


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

    def inputs(self, input_ids: torch.Tensor) -> dict[str, Any]:
        """Return a model's arguments for a row [1, T] of these groups."""
        return {
            "input_ids": input_ids,
            # Of four dimensions, so that no causal mask is built; attention does not look at it.
            "attention_mask": input_ids.new_zeros(1, 1, 1, 1),
            "position_ids": self.positions().unsqueeze(0),
            "branches": self,
        }

    def sees(self, window: int | None) -> Callable[[Any, Any], torch.Tensor]:
        """Return whether the tokens at one place see those at another: indices that broadcast."""
        group, branch, position = self._of_tokens
        edge = position - (window or UNLIMITED)  # a tensor: all windows share compiled code

        def seen(query: Any, key: Any) -> torch.Tensor:
            own = (branch[key] == 0) | (branch[key] == branch[query])
            near = (key <= query) & (position[key] > edge[query])
            return own & near & (group[key] == group[query])

        return seen

    def block_mask(self, window: int | None) -> BlockMask:
        """Return what is seen as flex attention reads it."""
        if ("blocks", window) not in self._made:
            seen, size = self.sees(window), sum(group.length for group in self.groups)
            self._made["blocks", window] = create_block_mask(
                lambda _batch, _head, query, key: seen(query, key),
                None,
                None,
                size,
                size,
                device=self.device,
            )
        return self._made["blocks", window]

    def stacks(self, group: Group) -> tuple[list[torch.Tensor], torch.Tensor] | None:
        """Return stacks of branches of similar length, and where each token behind the trunk went.

        A stack is int64[branches, longest], places behind the trunk, of which shorter branches
        repeat the first; the second is int64[B], places in all stacks laid end to end. None where
        all branches are of one length, and reshaping does it.
        """
        if len(set(group.branches)) < 2:
            return None
        if ("stacks", group) not in self._made:
            self._made["stacks", group] = _stacks(group.branches, self.device)
        return self._made["stacks", group]

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


def _stacks(
    lengths: tuple[int, ...], device: torch.device | str
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """No branch is padded to more than twice its length, or to SHORT."""
    begins = [sum(lengths[:number]) for number in range(len(lengths))]
    stacks: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not stacks or max(2 * lengths[number], SHORT) < lengths[stacks[-1][0]]:
            stacks.append([])
        stacks[-1].append(number)
    made, found, offset = [], torch.empty(sum(lengths), dtype=torch.long), 0
    for stack in stacks:
        longest = lengths[stack[0]]
        columns = torch.arange(longest)
        begin, length = (torch.tensor([of[n] for n in stack])[:, None] for of in (begins, lengths))
        real = columns < length
        places = begin + columns * real
        found[places[real]] = (torch.arange(real.numel()).view_as(real) + offset)[real]
        offset += real.numel()
        made.append(places.to(device))
    return made, found.to(device)
