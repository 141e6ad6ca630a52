"""Groups that all earned the same cost nothing, and others can come in their place."""

from __future__ import annotations

import zlib

import datasets
import grpo_lab as lab
import pytest
import torch
from pydantic import ValidationError

from gptoss_tools.core.stream import StepStream
from gptoss_tools.errors import ConfigError
from gptoss_tools.training import zero_signal

LOSSES = ["dr_grpo", "dapo", "grpo", "bnpo", "cispo"]
EQUAL = (0, 3)  # rows of the table whose answers all earn the same


def some_equal(decision, rewards_K, completion, row):
    """Two rows of the table earn 0.3 whatever is answered, the others a hash of the answer."""
    if row["row"] in EQUAL:
        return 0.3
    return zlib.crc32(repr(completion.messages).encode()) % 101 / 100


def trainer(folder, zero="skip", rounds=0, **changes):
    run = lab.trainer(
        folder,
        reward="test_zero_signal:some_equal",
        num_generations=4,
        prompts_per_step=4,
        **changes,
    )
    run.skip_silent, run.resample_rounds = zero != "keep", rounds
    return run


def generated(run, generation=0):
    """The micro-batches of one generation batch."""
    run.model.train()
    per_generation = run.args.steps_per_generation
    rows = run._get_train_sampler().generation_batch(generation).tolist()
    torch.manual_seed(0)
    slices = []
    for step in range(per_generation):
        run._step = generation * per_generation + step
        slices.append(run._prepare_inputs([run.train_dataset[i] for i in rows]))
    return slices


def gradient(run, slices):
    run.model.zero_grad()
    run.current_gradient_accumulation_steps = len(slices)
    for batch in slices:
        run._compute_loss(run.model, batch).backward()
    return lab.gradients(run.model)


def test_a_group_is_silent_when_its_rewards_are_one_number():
    nan = torch.nan
    # 4 groups of 3: equal; different; equal but for a masked row; all masked
    rewards = torch.tensor([0.3, 0.3, 0.3, 0.1, 0.2, 0.1, nan, 0.5, 0.5, nan, nan, nan])
    silent = zero_signal.silent_rows(rewards, 3)
    assert silent.tolist() == [True] * 3 + [False] * 3 + [True] * 6


def test_rows_that_earn_the_same_for_every_action_are_told_from_the_table():
    data = datasets.Dataset.from_dict(
        {
            "reward_action_0": [0.5, 0.5, 0.2, None, None],
            "reward_action_1": [0.5, 0.6, None, None, 0.1],
            "reward_action_2": [0.5, 0.5, 0.2, None, 0.3],
        }
    )
    assert zero_signal.telling_rows(data) == [1, 4]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_gradient_without_silent_rows_is_the_gradient_with_them(
    tmp_path, loss_type, share_prompts, micro_batches
):
    run = trainer(
        tmp_path,
        loss_type=loss_type,
        share_prompts=share_prompts,
        gradient_accumulation_steps=micro_batches,
        num_iterations=2,  # ratios other than 1
    )
    slices = generated(run)
    silent = torch.cat([batch["silent"] for batch in slices])
    assert 0 < int(silent.sum()) < len(silent)
    skipped = gradient(run, slices)
    rows = []
    hook = run.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    gradient(run, slices)
    hook.remove()
    if not share_prompts:
        assert sum(rows) == int((~silent).sum())
    for batch in slices:
        # advantages of equal rewards are rounding noise around 0, which TRL trains on
        batch["advantages"] = torch.where(batch.pop("silent"), 0.0, batch["advantages"])
    expected = gradient(run, slices)
    for name, value in expected.items():
        assert value.norm() > 0
        assert (skipped[name] - value).norm() <= 1e-5 * value.norm(), name


def test_a_micro_batch_of_silent_rows_keeps_one_and_gives_a_gradient_of_nothing(tmp_path):
    run = trainer(tmp_path)
    (batch,) = generated(run)
    batch["silent"][:] = True
    batch["advantages"][:] = 0
    part, share = zero_signal.without_silent(batch, "dr_grpo", run.accelerator.gather)
    assert len(part["advantages"]) == 1 and share == 1 / 16
    assert all(not value.any() for value in gradient(run, [batch]).values())


def test_every_process_keeps_as_many_rows_as_the_busiest():
    batch = {
        "silent": torch.tensor([True, False, True, True]),
        "prompt_mask": torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        "num_items_in_batch": torch.tensor(9),
    }
    part, share = zero_signal.without_silent(batch, "bnpo", lambda _: torch.tensor([1, 2]))
    # rows 1, and 0 to fill up: prompts from the second column on; 3 + 1 of 9 tokens
    assert part["silent"].tolist() == [True, False] and share == pytest.approx(4 / 9)
    assert part["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert part["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert part["num_items_in_batch"] == 9
    whole, share = zero_signal.without_silent(batch, "bnpo", lambda _: torch.tensor([1, 4]))
    assert whole is batch and share == 1


def test_groups_that_teach_take_the_places_of_silent_ones():
    def batch(silent, prompts, completions):
        return {
            "silent": torch.tensor(silent).repeat_interleave(2),
            "prompt_ids": torch.tensor(prompts).repeat_interleave(2, dim=0),
            "completion_ids": torch.tensor(completions).repeat_interleave(2, dim=0),
            "advantages": torch.arange(2.0 * len(silent)),
            "num_items_in_batch": torch.tensor(1),
        }

    old = batch([True, False, True], [[1], [2], [3]], [[7, 7], [8, 8], [9, 9]])
    new = batch([True, False], [[4, 4], [0, 5]], [[1], [2]])
    assert zero_signal.splice(old, new, 2) == 1
    # prompts are padded left, completions right; only the first hole is filled
    assert old["prompt_ids"][::2].tolist() == [[0, 5], [0, 2], [0, 3]]
    assert old["completion_ids"][::2].tolist() == [[2, 0], [8, 8], [9, 9]]
    assert old["advantages"].tolist() == [2, 3, 2, 3, 4, 5]
    assert old["silent"][::2].tolist() == [False, False, True]


def test_redraws_are_a_function_of_seed_step_and_attempt():
    stream, same = (StepStream(50, 4, 2, seed=7) for _ in range(2))
    assert stream.again(3, 1, 6).tolist() == same.again(3, 1, 6).tolist()
    assert len(set(stream.again(3, 1, 50).tolist())) == 50
    assert stream.again(3, 1, 6).tolist() != stream.again(3, 2, 6).tolist()
    assert stream.again(3, 1, 4).tolist() != stream.draw(3).tolist()
    assert sorted(StepStream(2, 1, 1, seed=0).again(0, 1, 5).tolist()) in (
        [0, 0, 0, 1, 1],
        [0, 0, 1, 1, 1],
    )
    with pytest.raises(ValueError, match="attempt 0"):
        stream.again(3, 0, 1)


def test_silent_groups_are_drawn_again_within_the_budget(tmp_path):
    slices = generated(trainer(tmp_path / "skip"))
    before = int(torch.cat([b["silent"] for b in slices]).sum())
    assert before > 0
    run = trainer(tmp_path / "resample", rounds=4)
    (batch,) = generated(run)
    assert int(batch["silent"].sum()) < before
    assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"].sum())
    groups = batch["prompt_ids"].unique(dim=0, return_counts=True)[1]
    assert (groups % 4 == 0).all()
    assert run._metrics["train"]["silent_share"] == [float(batch["silent"].float().mean())]


def test_a_resumed_run_draws_again_what_an_uninterrupted_one_does(tmp_path):
    whole = trainer(tmp_path, rounds=2, max_steps=4)
    whole.train()
    second = trainer(tmp_path, rounds=2, max_steps=4)
    second.train(resume_from_checkpoint=str(tmp_path / "step-000002"))
    ours, expected = lab.weights(second), lab.weights(whole)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_losses_that_count_every_row_refuse_it():
    with pytest.raises(ValidationError, match="needs beta 0"):
        lab.settings(zero_signal="skip", beta=0.1)
    with pytest.raises(ValidationError, match="scale_rewards batch"):
        lab.settings(zero_signal="resample", scale_rewards="batch")


def test_groups_spread_over_processes_cannot_be_drawn_again(tmp_path):
    run = trainer(tmp_path, rounds=1)
    run.check_silent(8)
    with pytest.raises(ConfigError, match="whole groups of 4"):
        run.check_silent(6)
