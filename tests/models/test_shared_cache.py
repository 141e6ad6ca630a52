"""Rows that share a prompt's keys attend as if each had them to itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.models.shared_cache import Rows, SharedLayer, attend_shared, shared_cache

KV, REPEATS, WIDTH = 2, 2, 4


def rows_strategy():
    """Rows' prompts, every prompt with at least one row, in any order."""
    return st.integers(1, 4).flatmap(
        lambda n: st.lists(st.integers(0, n - 1), max_size=6).flatmap(
            lambda more: st.permutations([*range(n), *more])
        )
    )


@given(prompt_of=rows_strategy())
def test_rows_come_back_from_their_prompts(prompt_of):
    rows = Rows(torch.tensor(prompt_of))
    x = torch.arange(len(prompt_of) * 12.0).view(-1, 2, 3, 2)
    grouped = rows.by_prompt(x)
    assert grouped.shape[:2] == (max(prompt_of) + 1, 2)
    assert torch.equal(rows.by_row(grouped, 3), x)
    marks = torch.tensor(prompt_of, dtype=torch.float).view(-1, 1, 1, 1)
    for number, of_prompt in enumerate(rows.by_prompt(marks)):
        places = max(prompt_of.count(n) for n in prompt_of)
        assert of_prompt.numel() == places
        assert (of_prompt == number).sum() >= prompt_of.count(number)


@settings(deadline=None, max_examples=60)
@given(
    prompt_of=rows_strategy(),
    prompt=st.integers(1, 7),
    steps=st.lists(st.integers(1, 2), min_size=1, max_size=6),
    window=st.one_of(st.none(), st.integers(2, 9)),
    sinks=st.booleans(),
    kind=st.sampled_from(["adds", "sees"]),
)
def test_every_step_attends_as_with_a_cache_of_its_own(
    prompt_of, prompt, steps, window, sinks, kind
):
    draw = torch.Generator().manual_seed(len(prompt_of) + 10 * prompt)
    n, rows = max(prompt_of) + 1, len(prompt_of)
    trunk = [torch.randn(n, KV, prompt, WIDTH, generator=draw) for _ in range(2)]
    padding = torch.randint(0, prompt, (n,), generator=draw)[prompt_of]
    layer = SharedLayer(*trunk, Rows(torch.tensor(prompt_of)), window)
    keys, values = (x[prompt_of] for x in trunk)
    s_aux = torch.randn(KV * REPEATS, generator=draw) if sinks else None
    for length in steps:
        q = torch.randn(rows, KV * REPEATS, length, WIDTH, generator=draw)
        new = [torch.randn(rows, KV, length, WIDTH, generator=draw) for _ in range(2)]
        keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
        total = keys.size(2)
        assert layer.get_mask_sizes(length) == (total, 0)
        ahead = torch.arange(total - length, total).unsqueeze(1) - torch.arange(total)
        seen = (ahead >= 0) & (ahead < (window or 99))
        seen = seen & (torch.arange(total) >= padding.view(-1, 1, 1, 1))
        mask = seen if kind == "sees" else torch.zeros(seen.shape).masked_fill(~seen, -1e30)
        found = attend_shared(q, *layer.update(*new), mask, scaling=0.4, s_aux=s_aux)
        assert layer.get_seq_length() == total
        every = [x.repeat_interleave(REPEATS, 1).double() for x in (keys, values)]
        scores = (q.double() @ every[0].transpose(2, 3) * 0.4).exp() * seen
        whole = scores.sum(-1, keepdim=True)
        if s_aux is not None:
            whole = whole + s_aux.double().exp().view(1, -1, 1, 1)
        expected = (scores / whole @ every[1]).transpose(1, 2).float()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_a_mask_everything_is_seen():
    trunk = torch.zeros(1, 1, 2, WIDTH)
    layer = SharedLayer(trunk, trunk + 1, Rows(torch.tensor([0, 0])))
    new = torch.zeros(2, 1, 1, WIDTH)
    out = attend_shared(new, *layer.update(new, new + 4), None, scaling=1.0)
    assert out.tolist() == [[[[2.0] * WIDTH]]] * 2  # (1 + 1 + 4) / 3


def test_a_layer_with_a_window_keeps_no_more_than_it_reaches():
    trunk = torch.randn(2, 1, 50, WIDTH)
    cache = shared_cache([(trunk, trunk, None), (trunk, trunk, 5)], torch.tensor([0, 0, 1]))
    for _ in range(30):
        new = torch.randn(3, 1, 1, WIDTH)
        full, near = (cache.update(new, new, layer)[0] for layer in (0, 1))
    assert (full.prompts.size(2), full.own.size(2)) == (50, 30)
    assert (near.prompts.size(2), near.own.size(2)) == (4, 5)
    assert cache.get_seq_length() == 80
    held = sum(x.untyped_storage().nbytes() for x in cache.layers[1].own)
    assert held == 2 * 3 * 5 * WIDTH * 4  # keys and values, rows, tokens, bytes of a float


@pytest.mark.parametrize("steps", [1, 7, 64])
def test_what_rows_add_is_copied_a_bounded_number_of_times(steps):
    trunk = torch.zeros(1, 1, 1, WIDTH)
    layer = SharedLayer(trunk, trunk, Rows(torch.tensor([0, 0])))
    buffers = set()
    for step in range(steps):
        new = torch.full((2, 1, 1, WIDTH), float(step))
        own = layer.update(new, new)[0].own
        buffers.add(own.untyped_storage().data_ptr())
        assert own[0, 0, :, 0].tolist() == list(range(step + 1))
    assert len(buffers) <= 1 + steps.bit_length()
