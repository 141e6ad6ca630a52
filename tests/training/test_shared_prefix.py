"""Prompts computed once for a group give the figures of prompts computed once for each row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpo_lab as lab
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grpo_masking import LOSSES, assert_same_gradient, generate, gradient, move_policy
from transformers import DynamicCache, GenerationConfig

from gptoss_tools.models.branch_attention import follow_branches
from gptoss_tools.models.branches import Group
from gptoss_tools.training import shared_prefix
from gptoss_tools.training.shared_prefill import prefill, read_prompts_once

GROUPS = {"num_generations": 4, "prompts_per_step": 2, "max_completion_length": 7}


def test_a_group_is_the_prompt_and_then_a_branch_for_each_completion():
    prompt = torch.tensor([[0, 0, 5, 6, 7]] * 2)
    prompt_mask = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    completion, mask = torch.tensor([[8, 9, 1], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    pieces = shared_prefix.pieces_of(prompt, prompt_mask, completion, mask)
    packed = shared_prefix.pack(pieces)
    #                                        5  6 | 7  8  9 | 7
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 7]]
    assert packed.branches.positions().tolist() == [0, 1, 2, 3, 4, 2]
    assert packed.labels.tolist() == [[-100, -100, 8, 9, 1, 4]]
    assert packed.branches.groups == (Group(2, (3, 1)),)
    assert packed.where.tolist() == [2, 3, 4, 5]
    assert [t.tolist() for t in packed.back] == [[0, 0, 0, 1], [0, 1, 2, 0]]


lengths = st.lists(st.integers(0, 6), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(st.tuples(st.integers(1, 8), lengths), min_size=1, max_size=3))
def test_every_completion_can_be_read_off_the_row_with_its_prompt_and_positions(prompts):
    rows = [(number, p, c) for number, (p, cs) in enumerate(prompts) for c in cs]
    width, longest = max(1, *(c for _, _, c in rows)), max(p for _, p, _ in rows)
    ids = torch.arange(len(rows) * width).view(len(rows), width) + 100
    mask = (torch.arange(width) < torch.tensor([[c] for _, _, c in rows])).long()
    before = torch.tensor([[0] * (longest - p) + [n + 1] * p for n, p, _ in rows])
    pieces = shared_prefix.pieces_of(before, (before > 0).long(), ids, mask)
    if not mask.any():
        assert pieces == []
        return
    packed = shared_prefix.pack(pieces)
    assert len({tuple(piece.prompt) for piece in pieces}) == len(pieces)
    covered = list(zip(*(t.tolist() for t in packed.back), strict=True))
    assert sorted(covered) == [(r, c) for r in range(len(rows)) for c in range(rows[r][2])]
    seen = packed.branches.sees(None)
    everywhere = torch.arange(packed.input_ids.size(1))
    for place, (row, column) in zip(packed.where.tolist(), covered, strict=True):
        number, prompt, _ = rows[row]
        alone = [*[number + 1] * prompt, *ids[row].tolist()][: prompt + column]
        assert packed.input_ids[0, seen(torch.tensor(place), everywhere)].tolist() == alone
        assert packed.branches.positions()[place] == len(alone) - 1
        assert packed.labels[0, place] == ids[row, column]


@given(
    pieces=st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=5)),
        min_size=1,
        max_size=8,
    ),
    budget=st.integers(2, 120),
)
def test_a_budget_loses_no_completion_and_is_kept_unless_a_single_one_is_longer(pieces, budget):
    whole = [
        shared_prefix.Piece(
            list(range(prompt)),
            [shared_prefix.Branch(100 * n + m, [0] * size) for m, size in enumerate(sizes)],
        )
        for n, (prompt, sizes) in enumerate(pieces)
    ]
    rows = shared_prefix.within(whole, budget)
    again = {b.row: (len(p.prompt), len(b.tokens)) for row in rows for p in row for b in p.branches}
    assert again == {b.row: (len(p.prompt), len(b.tokens)) for p in whole for b in p.branches}
    for row in rows:
        alone = len(row) == 1 and len(row[0].branches) == 1
        assert alone or sum(piece.length for piece in row) <= budget
    assert len(shared_prefix.within(whole, None)) == 1


def test_groups_fill_a_forward_up_to_the_budget():
    pieces = [
        shared_prefix.Piece(list(range(11)), [shared_prefix.Branch(i, [0] * size)])
        for i, size in enumerate((30, 10, 20, 40))  # 40, 20, 30 and 50 tokens
    ]
    rows = shared_prefix.within(pieces, 70)
    # 50, then 40 does not fit, 30 goes with 40, 20 with 50
    assert [[p.length for p in row] for row in rows] == [[50, 20], [40, 30]]
    (long,) = shared_prefix.within(
        [shared_prefix.Piece([1, 2, 3], [shared_prefix.Branch(i, [0] * 4) for i in range(3)])], 14
    )
    assert [p.length for p in long] == [14]
    cut = shared_prefix.within(
        [shared_prefix.Piece([1, 2, 3], [shared_prefix.Branch(i, [0] * 4) for i in range(3)])], 13
    )
    assert [[p.length for p in row] for row in cut] == [[10], [6]]  # 2 + 4 + 4, and 2 + 4


@pytest.mark.parametrize(("micro_batches", "budget"), [(1, None), (2, None), (1, 60), (2, 45)])
@pytest.mark.parametrize("loss_type", [*LOSSES, "cispo"])
def test_the_gradient_is_trls_own(tmp_path, loss_type, micro_batches, budget):
    run = lab.trainer(
        tmp_path,
        share_prompts=True,
        tokens_per_forward=budget,
        loss_type=loss_type,
        beta=0.1 if loss_type == "grpo" else 0.0,
        gradient_accumulation_steps=micro_batches,
        num_iterations=2,  # makes TRL keep the log-probabilities of the policy that generated
        reward="lab_hash",
        **GROUPS,
    )
    run.share_prompts = False
    slices = generate(run, micro_batches)
    if loss_type == "bnpo":  # it divides by the tokens of a micro-batch, whichever rows these are
        slices = shared_prefix.regroup(slices, micro_batches)
    lengths = torch.cat([s["completion_mask"].sum(dim=1) for s in slices])
    padding = torch.cat([s["prompt_mask"][:, 0] for s in slices])
    assert len(lengths.unique()) > 1 and len(padding.unique()) == 2, "nothing is ragged here"
    move_policy(run.model)
    expected = gradient(run, run.compute_loss, slices, micro_batches, micro_batches)
    run.share_prompts = True
    shared = shared_prefix.regroup(slices, micro_batches)
    with counted_forwards(run) as forwards:
        ours = gradient(run, run.compute_loss, shared, micro_batches, micro_batches)
    assert_same_gradient(ours, expected)
    if budget:  # two groups of about 50 and 40 tokens
        assert len(forwards) > micro_batches and max(forwards) <= budget
    else:
        assert len(forwards) == micro_batches


@contextlib.contextmanager
def counted_forwards(run: lab.DecisionTrainer) -> Iterator[list[int]]:
    """The tokens of every forward pass within."""
    sizes: list[int] = []

    def note(module, args, kwargs):
        sizes.append(kwargs["input_ids"].numel())

    hook = run.model.register_forward_pre_hook(note, with_kwargs=True)
    yield sizes
    hook.remove()


def test_a_batch_without_a_single_scored_row_still_hangs_on_the_weights(tmp_path):
    run = lab.trainer(tmp_path, share_prompts=True, reward="lab_nothing", **GROUPS)
    (batch,) = generate(run, 1)
    assert not batch["completion_mask"].any()
    run.current_gradient_accumulation_steps = 1
    loss = run.compute_loss(run.model, batch)
    loss.backward()
    assert loss.item() == 0.0


def test_regrouping_keeps_the_rows_of_every_optimizer_step(tmp_path):
    run = lab.trainer(tmp_path, gradient_accumulation_steps=2, steps_per_generation=4, **GROUPS)
    slices = generate(run, 4)
    again = shared_prefix.regroup(slices, 2)
    for step in (0, 2):
        before, after = (
            sorted(
                tuple(row)
                for batch in part[step : step + 2]
                for row in torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1).tolist()
            )
            for part in (slices, again)
        )
        assert before == after
    scattered, together = (
        sum(len(torch.unique(batch["prompt_ids"], dim=0)) for batch in part)
        for part in (slices, again)
    )
    assert together < scattered


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of different lengths, 4, 1 and 2 times."""
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.zeros(3, 30, dtype=torch.long), torch.zeros(3, 30, dtype=torch.long)
    for row, length in enumerate((30, 7, 21)):
        ids[row, 30 - length :] = torch.randint(1, 250, (length,), generator=generator)
        mask[row, 30 - length :] = 1
    rows = [0, 0, 0, 0, 1, 2, 2]
    return ids[rows], mask[rows]


def test_a_repeated_cache_gives_the_logits_of_repeated_prompts():
    model = lab.tiny_model().eval()
    follow_branches(model)
    ids, mask = prompts()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = prefill(model, ids, mask)
    assert isinstance(cache, DynamicCache)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        last = model(
            input_ids=ids[:, -1:],
            attention_mask=mask,
            position_ids=positions[:, -1:],
            past_key_values=cache,
        ).logits[:, -1]
    assert torch.allclose(last, whole, rtol=1e-5, atol=1e-5)


def test_the_same_draws_give_the_same_tokens():
    model = lab.tiny_model().eval()
    ids, mask = prompts()
    config = GenerationConfig(max_new_tokens=40, do_sample=True, pad_token_id=0, eos_token_id=3)

    def draw() -> torch.Tensor:
        torch.manual_seed(5)
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)

    plain = draw()
    follow_branches(model)
    with read_prompts_once(model):
        shared = draw()
    assert torch.equal(plain, shared)
    assert "generate" not in vars(model)
    assert prefill(model, ids[[0, 4]], mask[[0, 4]]) is None  # nothing to share


@pytest.mark.parametrize("own", [{"use_cache": False}, {"num_beams": 2, "do_sample": False}])
@pytest.mark.parametrize("where", ["asked", "model"])
def test_generation_that_takes_no_cache_of_ours_is_left_alone(own, where):
    model = lab.tiny_model().eval()
    follow_branches(model)
    ids, mask = prompts()
    config = GenerationConfig(max_new_tokens=8, pad_token_id=0, eos_token_id=3)
    for name, value in own.items():
        setattr(config if where == "asked" else model.generation_config, name, value)
    plain = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    with read_prompts_once(model):
        shared = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert torch.equal(plain, shared)


@pytest.mark.parametrize("budget", [None, 2, 8])
def test_prompts_that_differ_in_padding_alone_are_two_and_one_token_is_a_prompt(budget):
    model = lab.tiny_model().eval()
    follow_branches(model)
    ids = torch.tensor([[0, 0, 7, 8, 9]] * 3 + [[0, 0, 0, 0, 5]] * 2)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]] + [[0] * 4 + [1]] * 2)
    config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=3)
    plain = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    with read_prompts_once(model, budget=budget):
        shared = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert torch.equal(plain, shared)
    assert len({tuple(row) for row in plain[:3, 5:].tolist()}) > 1  # the mask matters here


def test_steps_keep_their_rows_where_generations_end_within_them(tmp_path):
    options = {
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 6,
        "max_steps": 3,
        **GROUPS,
    }
    found = []
    for share in (False, True):
        run = lab.trainer(tmp_path / str(share), share_prompts=share, **options)
        run.train()
        found.append([log["loss"] for log in run.state.log_history if "loss" in log])
    plain, shared = found
    assert shared == pytest.approx(plain, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"share_prompts": True, "adapter": "mixlora"},
        {"share_prompts": True, "attn_implementation": "a/kernel"},
        {"tokens_per_forward": 8192},
    ],
)
def test_what_cannot_share_prompts_is_refused(wrong):
    with pytest.raises(ValueError, match="share_prompts"):
        lab.settings(**wrong)


def test_a_run_that_shares_prompts_is_resumed_exactly_and_starts_like_one_that_does_not(tmp_path):
    options = {
        "share_prompts": True,
        "tokens_per_forward": 40,
        "gradient_accumulation_steps": 2,
        **GROUPS,
    }
    whole = lab.trainer(tmp_path / "whole", max_steps=4, **options)
    whole.train()
    again = lab.trainer(tmp_path / "again", max_steps=4, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "step-000002"))
    for name, value in lab.weights(whole).items():
        assert torch.equal(lab.weights(again)[name], value), name
    without = {"share_prompts": False, "tokens_per_forward": None}
    plain = lab.trainer(tmp_path / "plain", max_steps=1, **(options | without))
    plain.train()
    first, shared = (run.state.log_history[0] for run in (plain, whole))
    for name in ("reward", "completions/mean_length"):
        assert shared[name] == first[name]  # the same tokens were drawn
    for name in ("loss", "grad_norm"):
        assert shared[name] == pytest.approx(first[name], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("share", [False, True])
def test_completions_are_drawn_without_dropout(tmp_path, share):
    run = lab.trainer(tmp_path, dropout=0.5, share_prompts=share, **GROUPS)
    run.model.train()
    prompts = run._tokenize_prompts([row["prompt"] for row in run.train_dataset])[0] * 2
    torch.manual_seed(0)
    drawn = run._generate_single_turn(prompts, None, {}, 4)[0]
    assert run.model.training
    without = lab.trainer(tmp_path, dropout=0.0, share_prompts=share, **GROUPS)
    torch.manual_seed(0)
    assert without._generate_single_turn(prompts, None, {}, 4)[0] == drawn
