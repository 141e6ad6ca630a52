"""Prompts computed once for a group give the figures of prompts computed once for each row."""

from __future__ import annotations

import grpo_lab as lab
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grpo_masking import LOSSES, assert_same_gradient, generate, gradient, move_policy
from transformers import DynamicCache, GenerationConfig

from gptoss_tools.training import shared_prefix
from gptoss_tools.training.shared_prefill import prefill, read_prompts_once

GROUPS = {"num_generations": 4, "prompts_per_step": 2, "max_completion_length": 7}


def test_a_group_is_the_prompt_and_then_a_branch_for_each_completion():
    prompt = torch.tensor([[0, 0, 5, 6, 7]] * 2)
    prompt_mask = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    completion, mask = torch.tensor([[8, 9, 1], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    pieces = shared_prefix.pieces_of(prompt, prompt_mask, completion, mask)
    packed = shared_prefix.pack(pieces, sliding_window=3)
    #                                        5  6 | 7  8  9 | 7
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 7]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert packed.labels.tolist() == [[-100, -100, 8, 9, 1, 4]]
    seen = packed.masks["full_attention"][0, 0] == 0
    assert seen[4].tolist() == [True, True, True, True, True, False]  # 9 sees its own branch
    assert seen[5].tolist() == [True, True, False, False, False, True]  # the other 7 sees no 8
    near = packed.masks["sliding_attention"][0, 0] == 0
    assert near[4].tolist() == [False, False, True, True, True, False]  # positions 2, 3, 4
    assert near[5].tolist() == [True, True, False, False, False, True]  # positions 0, 1, 2
    assert [t.tolist() for t in packed.back] == [[0, 0, 0, 1], [0, 1, 2, 0]]


lengths = st.lists(st.integers(0, 6), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(prompt=st.integers(1, 8), completions=lengths, window=st.integers(1, 9))
def test_every_token_sees_what_it_would_see_alone(prompt, completions, window):
    rows, width = len(completions), max(*completions, 1)
    ids = torch.arange(rows * width).view(rows, width) + 100
    mask = (torch.arange(width) < torch.tensor(completions).unsqueeze(1)).long()
    prompts = (torch.arange(prompt) + 1).expand(rows, -1)
    pieces = shared_prefix.pieces_of(prompts, torch.ones_like(prompts), ids, mask)
    if not any(completions):
        assert pieces == []
        return
    packed = shared_prefix.pack(pieces, sliding_window=window)
    covered = set(zip(*(t.tolist() for t in packed.back), strict=True))
    assert covered == {(r, c) for r in range(rows) for c in range(completions[r])}
    for (n, place), (row, column) in zip(
        zip(*(t.tolist() for t in packed.where), strict=True),
        zip(*(t.tolist() for t in packed.back), strict=True),
        strict=True,
    ):
        alone = [*range(1, prompt + 1), *ids[row].tolist()][: prompt + column]
        for kind, first in (("full_attention", 0), ("sliding_attention", len(alone) - window)):
            seen = packed.masks[kind][n, 0, place] == 0
            assert packed.input_ids[n, seen].tolist() == alone[max(0, first) :]
        assert packed.position_ids[n, place] == len(alone) - 1
        assert packed.labels[n, place] == ids[row, column]


def test_long_completions_are_cut_into_pieces_that_cost_no_more_than_rows():
    branches = [shared_prefix.Branch(i, list(range(50))) for i in range(8)]
    parts = list(shared_prefix._affordable(20, branches))
    assert [b.row for part in parts for b in part] == list(range(8))
    for part in parts:
        assert (19 + 50 * len(part)) ** 2 <= len(part) * 70**2
    assert len(list(shared_prefix._affordable(1000, branches))) == 1


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("loss_type", [*LOSSES, "cispo"])
def test_the_gradient_is_trls_own(tmp_path, loss_type, micro_batches):
    run = lab.trainer(
        tmp_path,
        loss_type=loss_type,
        beta=0.1 if loss_type == "grpo" else 0.0,
        gradient_accumulation_steps=micro_batches,
        num_iterations=2,  # makes TRL keep the log-probabilities of the policy that generated
        reward="lab_hash",
        **GROUPS,
    )
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
    ours = gradient(run, run.compute_loss, shared, micro_batches, micro_batches)
    assert_same_gradient(ours, expected)


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
    with read_prompts_once(model):
        shared = draw()
    assert torch.equal(plain, shared)
    assert "generate" not in vars(model)
    assert prefill(model, ids[[0, 4]], mask[[0, 4]]) is None  # nothing to share


@pytest.mark.parametrize("other", [{"adapter": "mixlora"}, {"attn_implementation": "a/kernel"}])
def test_what_cannot_share_prompts_is_refused(other):
    with pytest.raises(ValueError, match="share_prompts"):
        lab.settings(share_prompts=True, **other)


def test_a_run_that_shares_prompts_is_resumed_exactly_and_starts_like_one_that_does_not(tmp_path):
    options = {"share_prompts": True, "gradient_accumulation_steps": 2, **GROUPS}
    whole = lab.trainer(tmp_path / "whole", max_steps=4, **options)
    whole.train()
    again = lab.trainer(tmp_path / "again", max_steps=4, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "step-000002"))
    for name, value in lab.weights(whole).items():
        assert torch.equal(lab.weights(again)[name], value), name
    plain = lab.trainer(tmp_path / "plain", max_steps=1, **{**options, "share_prompts": False})
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
