"""Attention along branches is attention over each trunk with each of its branches, alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss_tools.errors import ConfigError
from gptoss_tools.models import branch_attention
from gptoss_tools.models import branches as branches_module
from gptoss_tools.models.branch_attention import attend_branches, follow_branches
from gptoss_tools.models.branches import Branches, Group

groups = st.lists(
    st.builds(
        Group, st.integers(0, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)
    ),
    min_size=1,
    max_size=3,
)
windows = st.one_of(st.none(), st.integers(1, 12))


def alone(groups) -> list[tuple[list[int], list[int]]]:
    """Every trunk with one of its branches: their places in the row, and those of the branch."""
    found, begin = [], 0
    for group in groups:
        trunk = list(range(begin, begin + group.trunk))
        begin += group.trunk
        for length in group.branches:
            branch = list(range(begin, begin + length))
            found.append((trunk + branch, branch))
            begin += length
    return found


@given(groups=groups, window=windows)
def test_a_token_sees_what_it_would_see_in_a_sequence_of_its_own(groups, window):
    branches = Branches(tuple(groups))
    seen, positions = branches.sees(window), branches.positions()
    everywhere = torch.arange(len(positions))
    for sequence, branch in alone(groups):
        for place in branch:
            at = sequence.index(place)
            assert positions[place] == at
            expected = sequence[max(0, at + 1 - (window or 99)) : at + 1]
            assert everywhere[seen(torch.tensor(place), everywhere)].tolist() == expected


def queries(groups, heads: int = 4, kv: int = 2, width: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = sum(group.length for group in groups)
    sizes = ((1, heads, tokens, width), (1, kv, tokens, width), (1, kv, tokens, width), (heads,))
    return [
        torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in sizes
    ]


def reference(q, k, v, sinks, visible) -> torch.Tensor:
    """Softmax over the visible keys and the sink, written down plainly; [1, T, heads, D]."""
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) * 0.3).masked_fill(~visible, -torch.inf).exp()
    whole = scores.sum(-1, keepdim=True)
    if sinks is not None:
        whole = whole + sinks.exp().view(1, -1, 1, 1)
    return (scores / whole @ v).transpose(1, 2)


@settings(deadline=None, max_examples=80)
@given(groups=groups, window=windows, with_sinks=st.booleans(), chunk=st.integers(1, 5))
def test_plain_attention_and_its_gradients_are_those_of_a_dense_mask(
    groups, window, with_sinks, chunk
):
    branches = Branches(tuple(groups))
    q, k, v, sinks = queries(groups)
    s_aux = sinks if with_sinks else None
    with pytest.MonkeyPatch.context() as patch:  # trunks and branches here are short
        patch.setattr(branch_attention, "CHUNK", chunk)
        patch.setattr(branches_module, "SHORT", 0)
        ours = attend_branches(
            torch.nn.Module(), q, k, v, branches, scaling=0.3, sliding_window=window, s_aux=s_aux
        )
    places = torch.arange(q.size(2))
    expected = reference(q, k, v, s_aux, branches.sees(window)(places.unsqueeze(1), places))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)  # softmax is in float32
    inputs = [q, k, v, *([sinks] if with_sinks else [])]
    weights = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view_as(ours)
    pairs = [torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, expected)]
    for found, right in zip(*pairs, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("with_sinks", [True, False])
def test_flex_attention_computes_the_same_and_its_gradients(monkeypatch, window, with_sinks):
    # PyTorch refuses flex attention's gradients on the CPU, though its uncompiled form has them.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    layout = (Group(150, (7, 3, 7)), Group(4, (2,)), Group(0, (6, 6)))
    q, k, v, sinks = (x.detach().float().requires_grad_() for x in queries(layout))
    s_aux = sinks if with_sinks else None
    found = [
        attend_branches(
            torch.nn.Module(),
            q,
            k,
            v,
            Branches(layout, fused=fused),
            scaling=0.3,
            sliding_window=window,
            s_aux=s_aux,
        )
        for fused in (False, True)
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    inputs = [q, k, v, *([sinks] if with_sinks else [])]
    pairs = [torch.autograd.grad(out.square().sum(), inputs) for out in found]
    for ours, fused in zip(*pairs, strict=True):
        torch.testing.assert_close(fused, ours, rtol=1e-3, atol=1e-4)


def test_a_block_mask_holds_what_is_seen_and_nothing_else():
    layout = (Group(200, (90, 3)), Group(140, (10, 60)))
    branches = Branches(layout, fused=True)
    for window in (None, 100):
        blocks = branches.block_mask(window)
        places = torch.arange(503)  # 200 + 93 + 140 + 70
        dense = branches.sees(window)(places.unsqueeze(1), places)
        padded = torch.nn.functional.pad(dense, (0, 9, 0, 9)).view(4, 128, 4, 128)
        assert torch.equal(blocks.to_dense()[0, 0].bool(), padded.any(3).any(1))
        assert branches.block_mask(window) is blocks  # made once for all layers


@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=9))
def test_branches_are_stacked_with_those_of_similar_length(lengths):
    group = Group(3, tuple(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches_module, "SHORT", 4)
        stacks = Branches((group,)).stacks(group)
    if len(set(lengths)) == 1:
        assert stacks is None
        return
    assert stacks is not None
    made, back = stacks
    laid = torch.cat([places.flatten() for places in made])
    assert laid[back].tolist() == list(range(sum(lengths)))  # every token is found again
    assert sum(len(places) for places in made) == len(lengths)
    for places in made:
        shortest = min(len(set(row.tolist())) for row in places)
        assert places.size(1) <= max(2 * shortest, 4)


def tiny(attention: str = "eager") -> GptOssForCausalLM:
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
        initializer_range=0.5,
        attn_implementation=attention,
    )
    return GptOssForCausalLM(config)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_gives_a_row_the_logits_and_gradients_of_its_sequences(checkpointing):
    model = tiny()
    layout = (Group(9, (3, 5)), Group(2, (4,)))
    row = torch.randint(0, 50, (23,), generator=torch.Generator().manual_seed(1))
    expected = [
        model(input_ids=row[sequence].unsqueeze(0)).logits[0, -len(branch) :]
        for sequence, branch in alone(layout)
    ]
    trained = [p for n, p in model.named_parameters() if "experts" not in n and "embed" not in n]
    before = torch.autograd.grad(sum(x.square().sum() for x in expected), trained)
    follow_branches(model)
    follow_branches(model)  # twice is once
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    branches = Branches(layout)
    logits = model(
        input_ids=row.unsqueeze(0),
        attention_mask=torch.zeros(1, 1, 1, 1),
        position_ids=branches.positions().unsqueeze(0),
        branches=branches,
    ).logits[0]
    found = [logits[branch] for _, branch in alone(layout)]
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
    after = torch.autograd.grad(sum(x.square().sum() for x in found), trained)
    for ours, right in zip(after, before, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-4)


def test_a_model_without_branches_computes_the_same_bits_as_before():
    plain, told = tiny(), tiny()
    follow_branches(told)
    row = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(row)
    mask[0, :5] = 0
    assert torch.equal(*(m(input_ids=row, attention_mask=mask).logits for m in (plain, told)))
    drawn = [
        m.generate(row, attention_mask=mask, max_new_tokens=5, do_sample=False)
        for m in (plain, told)
    ]
    assert torch.equal(*drawn)


def test_attention_that_cannot_be_told_is_refused():
    model = tiny()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ConfigError, match="flex_attention cannot be told"):
        follow_branches(model)
    q, k, v, _ = queries([Group(1, (1,))])
    with pytest.raises(ValueError, match="dropout"):
        attend_branches(
            torch.nn.Module(), q, k, v, Branches((Group(1, (1,)),)), scaling=1.0, dropout=0.1
        )
