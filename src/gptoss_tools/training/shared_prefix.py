"""Each prompt once: the completions of a group as branches of one sequence, scored exactly.

TRL repeats a prompt for each of its G completions, forward and backward. Here a group is one
sequence, the prompt without its last token and then, for each completion, that last token and the
completion without its own last:

    p1 .. p(P-1) | pP a1 .. | pP b1 .. | pP c1 ..

Positions go on from the prompt in every branch, and a token sees the prompt and what stands before
it in its own branch (`models.branch_attention`). So every token meets exactly the keys, in the
distances, that it meets in a sequence of its own, and gradients through the prompt add up over the
branches as they do over repeated rows. What differs is rounding.

Groups stand in one row, one behind the other and without padding, as many as a budget of tokens
allows; what it does not allow is the next row's, with a forward pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.branches import Branches, Group

FAMILIES = ("gpt_oss", "qwen2", "qwen3", "llama", "mistral")
"""Models whose layers hand `branches` and their own window on to attention."""


def check_family(config: Any) -> None:
    """Raise ConfigError for a model that is not known to follow branches."""
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"share_prompts is exact for {', '.join(FAMILIES)}, and nobody has "
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
    """A prompt and completions of it."""

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

    ids and masks: [B, P], padded left, and [B, C], padded right.
    """
    groups: dict[tuple[int, ...], list[Branch]] = {}
    rows = zip(prompt_ids, prompt_mask.bool(), completion_ids, completion_mask, strict=True)
    for row, (prompt, real, completion, mask) in enumerate(rows):
        end = int(mask.nonzero().max()) + 1 if mask.any() else 0
        branches = groups.setdefault(tuple(prompt[real].tolist()), [])
        if end:
            branches.append(Branch(row, completion[:end].tolist()))
    return [Piece(list(prompt), branches) for prompt, branches in groups.items() if branches]


def within(pieces: Sequence[Piece], budget: int | None) -> list[list[Piece]]:
    """Divide pieces into rows of at most `budget` tokens, in few rows; None is one row.

    A piece that is longer is cut, and its prompt comes again with the rest of its completions; one
    completion with its prompt is never cut, however long.
    """
    if budget is None:
        return [list(pieces)]
    whole = [part for piece in pieces for part in _cut(piece, budget)]
    rows: list[list[Piece]] = []
    free: list[int] = []
    for piece in sorted(whole, key=lambda piece: -piece.length):  # the first row with room
        place = next((i for i, room in enumerate(free) if room >= piece.length), len(rows))
        if place == len(rows):
            rows.append([])
            free.append(budget)
        rows[place].append(piece)
        free[place] -= piece.length
    return rows


def _cut(piece: Piece, budget: int) -> Iterator[Piece]:
    part: list[Branch] = []
    used = trunk = len(piece.prompt) - 1
    for branch in piece.branches:
        if part and used + len(branch.tokens) > budget:
            yield Piece(piece.prompt, part)
            part, used = [], trunk
        part.append(branch)
        used += len(branch.tokens)
    yield Piece(piece.prompt, part)


@dataclass(frozen=True)
class Packed:
    """A row of pieces: [1, T] tensors, and its branches.

    `labels` are shifted already, -100 where nothing is predicted. `where` are the places and `back`
    the (row, column) in the batch of every predicted token.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    branches: Branches
    where: torch.Tensor
    back: tuple[torch.Tensor, torch.Tensor]


def pack(
    pieces: Sequence[Piece], *, device: torch.device | str = "cpu", fused: bool = False
) -> Packed:
    """Lay pieces one behind the other."""
    ids: list[int] = []
    labels: list[int] = []
    back: list[tuple[int, int]] = []
    for piece in pieces:
        ids += piece.prompt[:-1]
        labels += [-100] * (len(piece.prompt) - 1)
        for branch in piece.branches:
            ids += [piece.prompt[-1], *branch.tokens[:-1]]
            labels += branch.tokens
            back += [(branch.row, column) for column in range(len(branch.tokens))]
    groups = tuple(
        Group(len(piece.prompt) - 1, tuple(len(branch.tokens) for branch in piece.branches))
        for piece in pieces
    )
    branches = Branches(groups, device, fused)
    shifted = torch.tensor([labels], device=device)
    rows, columns = torch.tensor(back, device=device).T
    return Packed(
        torch.tensor([ids], device=device),
        shifted,
        branches,
        (shifted[0] != -100).nonzero().squeeze(1),
        (rows, columns),
    )


def score(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    *,
    fused: bool = False,
    budget: int | None = None,
    batch_size: int | None = None,
    agree: Callable[[int], int] = int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies of the completions: [B, completion_length] each.

    What TRL's method of that purpose returns, where the completion's mask is not 0. `model` has
    TRL's fused head and follows branches (with flex attention if `fused`). A forward computes at
    most `budget` tokens, or without one `batch_size` completions, except within a group. `agree`
    maps how many forwards this process needs to how many all of them make.
    """
    split = input_ids.size(1) - completion_length
    ids, mask = input_ids.cpu(), attention_mask.cpu()  # once, and not token by token
    pieces = pieces_of(ids[:, :split], mask[:, :split], ids[:, split:], mask[:, split:])
    if not pieces:  # the result must hang on the model's weights all the same
        prompt = ids[0, :split][mask[0, :split].bool()].tolist()
        pieces = [Piece(prompt, [Branch(0, ids[0, split : split + 1].tolist())])]
    parts = within(pieces, budget) if budget else list(_batches(pieces, batch_size))
    logps: Any = None
    entropies: Any = None
    for number in range(agree(len(parts))):
        packed = pack(parts[min(number, len(parts) - 1)], device=input_ids.device, fused=fused)
        outputs = model(
            **packed.branches.inputs(packed.input_ids),
            shift_labels=packed.labels,
            fused_lm_head=True,
        )
        if logps is None:
            shape = (input_ids.size(0), completion_length)
            logps, entropies = (x.new_zeros(shape) for x in (outputs.log_probs, outputs.entropy))
        if number >= len(parts):  # only so that another process does not wait
            logps = logps + 0 * outputs.log_probs.sum()
            continue
        logps = logps.index_put(packed.back, outputs.log_probs[0, packed.where])
        entropies = entropies.index_put(packed.back, outputs.entropy[0, packed.where])
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
    groups. Each optimizer step keeps its rows where none begins within a window.
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
