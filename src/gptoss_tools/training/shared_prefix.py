"""Each prompt once: the completions of a group as branches of one sequence, scored exactly.

TRL repeats a prompt for each of its G completions, forward and backward. Here a group is one
sequence, the prompt without its last token and then, for each completion, that last token and the
completion without its own last:

    p1 .. p(P-1) | pP a1 .. | pP b1 .. | pP c1 ..

Positions go on from the prompt in every branch, and a mask lets a token see the prompt and what
stands before it in its own branch. So every token meets exactly the keys, in the distances, that it
meets in a sequence of its own, and gradients through the prompt add up over the branches as they do
over repeated rows. What differs is rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_tools.errors import ConfigError

MASKS = ("full_attention", "sliding_attention")
"""The kinds of layers gpt-oss has; its model takes one mask for each."""
BY_KIND = ("gpt_oss", "qwen2", "qwen3")
BY_MODEL = ("llama", "mistral")
"""Families whose models take a mask for each kind of layer, and one mask for all layers."""


def check_family(config: Any) -> None:
    """Raise ConfigError for a model that is not known to take masks of our making."""
    if config.model_type not in (*BY_KIND, *BY_MODEL):
        raise ConfigError(
            f"share_prompts is exact for {', '.join((*BY_KIND, *BY_MODEL))}, and nobody has "
            f"checked it for {config.model_type}",
            hint="leave out share_prompts: every completion then brings its prompt along",
        )


@dataclass(frozen=True)
class Branch:
    """A completion: its row in the batch and its tokens."""

    row: int
    tokens: list[int]


@dataclass(frozen=True)
class Piece:
    """One packed sequence: a prompt and some of its completions."""

    prompt: list[int]
    branches: list[Branch]

    @property
    def length(self) -> int:
        """Tokens that are computed."""
        return len(self.prompt) - 1 + sum(len(branch.tokens) for branch in self.branches)


def pieces_of(
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> list[Piece]:
    """Return the groups of a batch in order of their first row; rows without a token are left out.

    ids and masks: [B, P], padded left, and [B, C], padded right. A group whose dense mask would
    have more entries than those of its rows together is cut into pieces that have not.
    """
    groups: dict[tuple[int, ...], list[Branch]] = {}
    rows = zip(prompt_ids, prompt_mask.bool(), completion_ids, completion_mask, strict=True)
    for row, (prompt, real, completion, mask) in enumerate(rows):
        end = int(mask.nonzero().max()) + 1 if mask.any() else 0
        branches = groups.setdefault(tuple(prompt[real].tolist()), [])
        if end:
            branches.append(Branch(row, completion[:end].tolist()))
    return [
        Piece(list(prompt), part)
        for prompt, branches in groups.items()
        for part in _affordable(len(prompt), branches)
    ]


def _affordable(prompt: int, branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Cut a group where the square of the packed length would exceed the sum of squares."""
    part: list[Branch] = []
    packed, repeated = prompt - 1, 0
    for branch in branches:
        size = len(branch.tokens)
        packed, repeated = packed + size, repeated + (prompt + size) ** 2
        if part and packed**2 > repeated:
            yield part
            part, packed, repeated = [], prompt - 1 + size, (prompt + size) ** 2
        part.append(branch)
    if part:
        yield part


@dataclass(frozen=True)
class Packed:
    """Pieces as tensors: [n, S] each, S the longest piece; masks [n, 1, S, S], 0 or the least.

    `labels` are shifted already, -100 where nothing is predicted. `where` are the (piece, place)
    and `back` the (row, column) of every predicted token.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    masks: dict[str, torch.Tensor]
    where: tuple[torch.Tensor, torch.Tensor]
    back: tuple[torch.Tensor, torch.Tensor]


def pack(
    pieces: Sequence[Piece],
    *,
    sliding_window: int | None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Packed:
    """Lay pieces side by side, padded right."""
    width = max(piece.length for piece in pieces)
    ids, positions, labels, branch_of = (
        torch.full((len(pieces), width), fill) for fill in (0, 0, -100, -1)
    )
    where: list[tuple[int, int]] = []
    back: list[tuple[int, int]] = []
    for n, piece in enumerate(pieces):
        trunk = len(piece.prompt) - 1
        ids[n, :trunk] = torch.tensor(piece.prompt[:-1], dtype=torch.long)
        positions[n, :trunk] = torch.arange(trunk)
        branch_of[n, :trunk] = 0
        begin = trunk
        for number, branch in enumerate(piece.branches, 1):
            end = begin + len(branch.tokens)
            ids[n, begin:end] = torch.tensor([piece.prompt[-1], *branch.tokens[:-1]])
            positions[n, begin:end] = torch.arange(trunk, trunk + end - begin)
            labels[n, begin:end] = torch.tensor(branch.tokens)
            branch_of[n, begin:end] = number
            where += [(n, place) for place in range(begin, end)]
            back += [(branch.row, column) for column in range(end - begin)]
            begin = end
    seen = _visible(branch_of.to(device), positions.to(device), None)
    near = _visible(branch_of.to(device), positions.to(device), sliding_window)
    masks = {kind: _additive(m, dtype) for kind, m in zip(MASKS, (seen, near), strict=True)}
    pair = [torch.tensor(pairs, device=device).T for pairs in (where, back)]
    return Packed(
        ids.to(device),
        positions.to(device),
        labels.to(device),
        masks,
        (pair[0][0], pair[0][1]),
        (pair[1][0], pair[1][1]),
    )


def _visible(branch: torch.Tensor, position: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return bool[n, S, S]: whether the token of the second axis sees that of the third."""
    query, key = branch.unsqueeze(2), branch.unsqueeze(1)
    ahead = position.unsqueeze(2) - position.unsqueeze(1)
    seen = ((key == 0) | (key == query)) & (key >= 0) & (ahead >= 0)
    return seen if window is None else seen & (ahead < window)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def score(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    *,
    config: Any,
    dtype: torch.dtype,
    batch_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies of the completions: [B, completion_length] each.

    What TRL's method of that purpose returns, at 0 where the completion's mask is 0. `model` has
    TRL's fused head and this `config`. `batch_size` bounds the completions in one forward, except
    within a group.
    """
    split = input_ids.size(1) - completion_length
    window = getattr(config, "sliding_window", None)
    pieces = pieces_of(
        input_ids[:, :split],
        attention_mask[:, :split],
        input_ids[:, split:],
        attention_mask[:, split:],
    )
    if not pieces:  # the result must hang on the model's weights all the same
        prompt = input_ids[0, :split][attention_mask[0, :split].bool()].tolist()
        pieces = [Piece(prompt, [Branch(0, input_ids[0, split : split + 1].tolist())])]
    shape, by_kind = (input_ids.size(0), completion_length), config.model_type in BY_KIND
    logps: Any = None
    entropies: Any = None
    for part in _batches(pieces, batch_size):
        packed = pack(part, sliding_window=window, dtype=dtype, device=input_ids.device)
        outputs = model(
            input_ids=packed.input_ids,
            attention_mask=packed.masks if by_kind else packed.masks[MASKS[1]],
            position_ids=packed.position_ids,
            shift_labels=packed.labels,
            fused_lm_head=True,
        )
        if logps is None:
            logps, entropies = (x.new_zeros(shape) for x in (outputs.log_probs, outputs.entropy))
        logps = logps.index_put(packed.back, outputs.log_probs[packed.where])
        entropies = entropies.index_put(packed.back, outputs.entropy[packed.where])
    return logps, entropies


def _batches(pieces: list[Piece], batch_size: int | None) -> Iterator[list[Piece]]:
    part: list[Piece] = []
    rows = 0
    for piece in pieces:
        if part and batch_size is not None and rows + len(piece.branches) > batch_size:
            yield part
            part, rows = [], 0
        part.append(piece)
        rows += len(piece.branches)
    yield part


def regroup(slices: list[dict[str, Any]], window: int) -> list[dict[str, Any]]:
    """Let rows of one prompt stand together, within every `window` micro-batches.

    TRL shuffles the rows of a generation batch before it cuts micro-batches, which scatters the
    groups. With `window` the micro-batches of one optimizer step, each step keeps its rows.
    """
    regrouped: list[dict[str, Any]] = []
    for begin in range(0, len(slices), window):
        part = slices[begin : begin + window]
        prompts = torch.cat([piece["prompt_ids"] for piece in part])
        _, group = torch.unique(prompts, dim=0, return_inverse=True)
        order = torch.argsort(group, stable=True)
        columns: dict[str, Any] = {}
        for name, value in part[0].items():
            whole = isinstance(value, torch.Tensor) and value.dim() > 0
            if whole and len(value) == len(part[0]["prompt_ids"]):
                joined = torch.cat([piece[name] for piece in part])[order]
                columns[name] = joined.chunk(len(part))
            else:
                columns[name] = [piece[name] for piece in part]
        regrouped += [{n: values[i] for n, values in columns.items()} for i in range(len(part))]
    return regrouped
