"""Score the answers a completion could have given beside the one it gave, in one forward.

A completion is cut where its answer begins. Behind the reasoning h1 .. hD stand the rest of what
was drawn, and every written answer as a path through a tree in which equal beginnings are one; a
place holds a token and predicts the next:

    p1 .. p(P-1) | pP h1 .. h(D-1) | hD b1 b2 .. | hD | "[" | "0" | "1" | "]" | "]" ..
                   predicts h1..hD   b1 b2 b3 ..  "["   0     "]"   "]"  stop  stop

Positions go on from the prompt, and a token sees its own path only: with the dense masks of
`shared_prefix`, and with its sharing, where completions of one prompt stand behind it together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

MASKS = ("full_attention", "sliding_attention")
"""The kinds of layers gpt-oss has; its model takes one mask for each."""
ABSENT = -1
"""Fills up rows of answers."""


@dataclass(frozen=True)
class Drawn:
    """A completion: its row, its tokens, how many come before its answer, the answers written."""

    row: int
    tokens: list[int]
    decided: int
    answers: list[list[int]]

    @property
    def length(self) -> int:
        """Places it takes, at most."""
        return len(self.tokens) + sum(len(answer) for answer in self.answers)


@dataclass
class Strip:
    """One packed sequence: a prompt, and behind it one completion or several with their answers.

    `lineage` holds, for every segment, the segments it sees, itself included. `back` are the (row,
    column) of drawn tokens and `where` their places; `paths` the places of each written answer.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    lineage: list[list[int]] = field(default_factory=list)
    where: list[int] = field(default_factory=list)
    back: list[tuple[int, int]] = field(default_factory=list)
    paths: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Sequence[int], completions: Sequence[Drawn]) -> Strip:
        """Lay out completions of one prompt."""
        strip = cls()
        trunk = strip._add(None, 0, prompt[:-1], [-100] * (len(prompt) - 1))
        for drawn in completions:
            strip._complete(trunk, prompt[-1], len(prompt) - 1, drawn)
        return strip

    def _complete(self, trunk: int, last: int, begin: int, drawn: Drawn) -> None:
        tokens, cut = drawn.tokens, drawn.decided
        reasoning = self._add(trunk, begin, [last, *tokens[: cut - 1]], tokens[:cut])
        self._note(drawn.row, 0, cut)
        if tokens[cut:]:
            self._add(reasoning, begin + cut, tokens[cut - 1 : -1], tokens[cut:])
            self._note(drawn.row, cut, len(tokens))
        places: dict[tuple[int, ...], tuple[int, int]] = {}
        for number, answer in enumerate(drawn.answers):
            segment, path = reasoning, []
            for depth, token in enumerate(answer):
                key = tuple(answer[: depth + 1])
                if key not in places:
                    held = answer[depth - 1] if depth else tokens[cut - 1]
                    own = self._add(segment, begin + cut + depth, [held], [token])
                    places[key] = own, len(self.ids) - 1
                segment, place = places[key]
                path.append(place)
            self.paths[drawn.row, number] = path

    def _add(self, parent: int | None, begin: int, ids: Sequence[int], labels: list[int]) -> int:
        number = len(self.lineage)
        self.lineage.append([*([] if parent is None else self.lineage[parent]), number])
        self.ids += ids
        self.positions += range(begin, begin + len(ids))
        self.labels += labels
        self.segments += [number] * len(ids)
        return number

    def _note(self, row: int, begin: int, end: int) -> None:
        """The last places added are these columns of the row."""
        self.where += range(len(self.ids) - (end - begin), len(self.ids))
        self.back += [(row, column) for column in range(begin, end)]

    def visible(self, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return bool[width, width]: whether the second place is on the first one's path."""
        kin = torch.zeros(len(self.lineage), len(self.lineage), dtype=torch.bool)
        for number, seen in enumerate(self.lineage):
            kin[number, seen] = True
        kin = kin.to(device)
        segments = torch.tensor(self.segments, device=device)
        positions = torch.tensor(self.positions, device=device)
        out = torch.zeros(width, width, dtype=torch.bool, device=device)
        n = len(self.ids)
        out[:n, :n] = kin[segments][:, segments] & (positions <= positions.unsqueeze(1))
        return out


def strips_of(
    rows: Sequence[tuple[list[int], Drawn]], *, share: bool
) -> Iterator[tuple[list[int], list[Drawn]]]:
    """Put each completion behind a prompt of its own, or (`share`) groups behind one.

    A group is cut where the square of its packed length would exceed the sum of squares.
    """
    groups: dict[Any, tuple[list[int], list[Drawn]]] = {}
    for prompt, drawn in rows:
        key = tuple(prompt) if share else drawn.row
        groups.setdefault(key, (prompt, []))[1].append(drawn)
    for prompt, completions in groups.values():
        part: list[Drawn] = []
        packed, repeated = len(prompt), 0
        for drawn in completions:
            packed, repeated = packed + drawn.length, repeated + (len(prompt) + drawn.length) ** 2
            if part and packed**2 > repeated:
                yield prompt, part
                part, packed = [], len(prompt) + drawn.length
                repeated = packed**2
            part.append(drawn)
        yield prompt, part


@dataclass(frozen=True)
class Scores:
    """Of drawn tokens [B, C] the log-probabilities and entropies, of written answers [B, J] the
    probabilities; 0 where there is none. `drawn` [n, S]: which places were drawn or prompted."""

    logps: torch.Tensor
    entropies: torch.Tensor
    answers: torch.Tensor
    drawn: torch.Tensor


def score(
    model: Any,
    batch: dict[str, torch.Tensor],
    *,
    sliding_window: int | None,
    dtype: torch.dtype,
    share: bool,
    batch_size: int | None = None,
) -> Scores:
    """Run `model`, which has TRL's fused head, over a batch with `decided` and `answers`.

    prompt_ids, prompt_mask: [B, P], padded left; completion_ids, completion_mask: [B, C], padded
    right; decided: [B]; answers: [B, J, L], filled with ABSENT. `batch_size` bounds the completions
    in one forward, except within a shared group.
    """
    device, shape = batch["completion_ids"].device, batch["completion_ids"].shape
    strips = list(strips_of(_rows(batch), share=share))
    many = batch["answers"].shape[:2]
    logps: Any = None
    entropies: Any = None
    chances: Any = None
    counted: list[torch.Tensor] = []
    for part in _parts(strips, batch_size):
        packed = [Strip.of(*strip) for strip in part]
        width = max(len(strip.ids) for strip in packed)
        labels = _padded([strip.labels for strip in packed], width, -100)
        outputs = model(
            input_ids=_padded([strip.ids for strip in packed], width, 0).to(device),
            attention_mask=_masks(packed, width, sliding_window, dtype, device),
            position_ids=_padded([strip.positions for strip in packed], width, 0).to(device),
            shift_labels=labels.to(device),
            fused_lm_head=True,
        )
        given: torch.Tensor = outputs.log_probs
        if logps is None:
            logps, entropies = given.new_zeros(shape), outputs.entropy.new_zeros(shape)
            chances = given.new_zeros(many)
        where, back = _pairs([strip.where for strip in packed], [s.back for s in packed], device)
        logps = logps.index_put(back, given[where])
        entropies = entropies.index_put(back, outputs.entropy[where])
        slots, chance = _answer_chances(packed, given)
        if chance is not None:
            chances = chances.index_put(slots, chance)
        seen = torch.zeros(len(packed), width, dtype=torch.bool)
        for n, strip in enumerate(packed):
            seen[n, strip.where] = True
            seen[n, : strip.segments.count(0)] = True
        counted.append(seen.flatten())
    return Scores(logps, entropies, chances, torch.cat(counted).to(device))


def _rows(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], Drawn]]:
    rows: list[tuple[list[int], Drawn]] = []
    for row, decided in enumerate(batch["decided"].tolist()):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        tokens = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
        answers = [[t for t in a if t != ABSENT] for a in batch["answers"][row].tolist()]
        rows.append((prompt, Drawn(row, tokens, decided, answers)))
    return rows


def _parts(strips: list[tuple[list[int], list[Drawn]]], size: int | None) -> Iterator[list[Any]]:
    part: list[Any] = []
    rows = 0
    for strip in strips:
        if part and size is not None and rows + len(strip[1]) > size:
            yield part
            part, rows = [], 0
        part.append(strip)
        rows += len(strip[1])
    yield part


def _padded(lists: Sequence[Sequence[int]], width: int, fill: int) -> torch.Tensor:
    return torch.tensor([[*values, *[fill] * (width - len(values))] for values in lists])


def _masks(
    strips: list[Strip],
    width: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """Return [n, 1, S, S] for each kind of layer, 0 or the least number."""
    seen = torch.stack([strip.visible(width, device) for strip in strips])
    near = seen
    if window is not None:
        positions = _padded([strip.positions for strip in strips], width, 0).to(device)
        near = seen & (positions.unsqueeze(2) - positions.unsqueeze(1) < window)
    least = torch.finfo(dtype).min
    masks = [
        torch.zeros(m.shape, dtype=dtype, device=device).masked_fill_(~m, least).unsqueeze(1)
        for m in (seen, near)
    ]
    return dict(zip(MASKS, masks, strict=True))


def _pairs(where: list[list[int]], back: list[list[tuple[int, int]]], device: Any) -> Any:
    places = [(n, place) for n, own in enumerate(where) for place in own]
    cells = [cell for own in back for cell in own]
    return tuple(tuple(torch.tensor(pairs, device=device).T) for pairs in (places, cells))


def _answer_chances(strips: list[Strip], given: torch.Tensor) -> tuple[Any, Any]:
    """Return the (row, answer) of every written answer and its probability."""
    found = [
        (cell, n, path) for n, s in enumerate(strips) for cell, path in s.paths.items() if path
    ]
    if not found:
        return None, None
    depth = max(len(path) for _, _, path in found)
    places = _padded([path for _, _, path in found], depth, ABSENT).to(given.device)
    strip = torch.tensor([n for _, n, _ in found], device=given.device)
    steps = given[strip.unsqueeze(1), places.clamp(min=0)]
    chance = torch.where(places != ABSENT, steps, 0.0).sum(dim=1).exp()
    return tuple(torch.tensor([cell for cell, _, _ in found], device=given.device).T), chance
