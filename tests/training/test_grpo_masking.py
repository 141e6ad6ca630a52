"""A completion without a reward leaves no trace in the gradient."""

from __future__ import annotations

import grpo_lab as lab
import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from gptoss_tools.errors import TrainingError
from gptoss_tools.registry import register
from gptoss_tools.training import masking

LOSSES = ["dr_grpo", "dapo", "grpo", "bnpo"]


def generate(run, micro_steps: int) -> list[dict]:
    """The micro-batches of one generation batch, as training would see them."""
    run.model.train()
    sampler = run._get_train_sampler()
    rows = [run.train_dataset[i] for i in sampler.generation_batch(0).tolist()]
    slices = []
    for step in range(micro_steps):
        run._step = step
        slices.append(run._prepare_inputs(rows))
    run._step = 0
    return slices


def move_policy(model) -> None:
    """Step away from the policy that generated, so that ratios and clipping count."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def removed(batch: dict, keep: torch.Tensor) -> dict:
    """The batch without the other rows."""
    rows = {k: v[keep] for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim > 0}
    return rows | {"num_items_in_batch": rows["completion_mask"].sum()}


def joined(slices: list[dict]) -> dict:
    keys = [k for k, v in slices[0].items() if v.ndim > 0]
    return {k: torch.cat([s[k] for s in slices]) for k in keys}


def gradient(run, loss_of, slices: list[dict], accumulation: int, per_generation: int) -> dict:
    run.model.zero_grad()
    run.current_gradient_accumulation_steps = accumulation
    run.args.steps_per_generation = per_generation
    for batch in slices:
        loss_of(run.model, batch).backward()
    return lab.gradients(run.model)


def assert_same_gradient(ours: dict, expected: dict) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert value.norm() > 0
        assert (ours[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_gradient_is_that_of_a_batch_without_the_masked_rows(
    tmp_path, loss_type, beta, micro_batches
):
    run = lab.trainer(
        tmp_path,
        loss_type=loss_type,
        beta=beta,
        num_generations=8,
        prompts_per_step=2,
        gradient_accumulation_steps=micro_batches,
        num_iterations=2,  # makes TRL keep the log-probabilities of the policy that generated
        reward="lab_third",
    )
    slices = generate(run, micro_batches)
    keeps = [s["completion_mask"].any(dim=1) for s in slices]
    kept, total = sum(int(k.sum()) for k in keeps), sum(len(k) for k in keeps)
    assert 2 <= kept < total and all(k.any() for k in keeps)
    move_policy(run.model)
    ours = gradient(run, run._compute_loss, slices, micro_batches, micro_batches)

    def stock(model, batch):
        return GRPOTrainer._compute_loss(run, model, batch)

    if loss_type == "bnpo":  # by definition each micro-batch on its own
        pieces = [removed(s, k) for s, k in zip(slices, keeps, strict=True)]
        expected = gradient(run, stock, pieces, micro_batches, micro_batches)
    else:
        expected = gradient(run, stock, [removed(joined(slices), torch.cat(keeps))], 1, 1)
    assert_same_gradient(ours, expected)
    # and it is not the one TRL would have taken, whose denominators count every row
    if loss_type in ("dr_grpo", "grpo"):
        for batch in slices:
            batch.pop("loss_scale")
        plain = gradient(run, run._compute_loss, slices, micro_batches, micro_batches)
        name = next(iter(plain))
        torch.testing.assert_close(plain[name] * total / kept, ours[name])


def test_advantages_come_from_the_rewards_that_are_there(tmp_path):
    records = []
    run = lab.trainer(
        tmp_path, num_generations=8, on_completions=records.extend, reward="lab_third"
    )
    (batch,) = generate(run, 1)
    rewards = torch.tensor([float("nan") if r["reward"] is None else r["reward"] for r in records])
    known = ~rewards.isnan()
    assert 5 <= int(known.sum()) <= 6  # of 8, every third masked
    # no scaling by default: advantage = reward - mean of the group's known rewards, 0 if masked
    expected = torch.where(known, rewards - rewards[known].mean(), 0.0)
    torch.testing.assert_close(batch["advantages"].sort()[0], expected.sort()[0])
    assert batch["completion_mask"].any(dim=1).sum() == known.sum()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_micro_batch_of_masked_rows_has_a_gradient_of_zero(tmp_path, loss_type):
    run = lab.trainer(tmp_path, loss_type=loss_type, beta=0.1, reward="lab_nothing")
    slices = generate(run, 1)
    for value in gradient(run, run._compute_loss, slices, 1, 1).values():
        assert torch.equal(value, torch.zeros_like(value))


class Recorder(TrainerCallback):
    """Weights and moments after every step."""

    def __init__(self):
        self.states = []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        moments = [v.clone() for s in optimizer.state.values() for v in s.values()]
        self.states.append(([p.detach().clone() for p in model.parameters()], moments))


def test_a_step_without_any_reward_moves_neither_weights_nor_moments(tmp_path):
    run = lab.trainer(tmp_path, rows=3, max_steps=12, save_steps=100)
    recorder = Recorder()
    run.add_callback(recorder)
    run.train()
    drawn = [int(run.stream.draw(t)[0]) for t in range(12)]
    still = [t for t in range(1, 12) if drawn[t] == lab.ALWAYS_MASKED_ROW]
    assert still and len(still) < 11
    for t in range(1, 12):
        (before, moments_before), (after, moments) = recorder.states[t - 1 : t + 1]
        same = all(map(torch.equal, before, after))
        assert same == (t in still)
        if t in still:
            assert all(map(torch.equal, moments_before, moments))


@register("reward", "lab_infinite")
def infinite(decision, rewards_K, completion, row):
    return float("inf")


def test_an_infinite_reward_stops_training(tmp_path):
    run = lab.trainer(tmp_path, reward="lab_infinite")
    with pytest.raises(TrainingError, match=r"failed on row \d: .*infinite"):
        run.train()


def test_prompts_of_masked_rows_are_not_logged(tmp_path, caplog):
    run = lab.trainer(tmp_path, max_steps=2)
    run.train()
    assert "<|message|>" not in caplog.text


def mask(*rows: int) -> dict:
    return {"completion_mask": torch.tensor([[row, row] for row in rows])}


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_row_losses_are_scaled_by_all_rows_over_valid_rows():
    # 8 rows, 5 of them valid: 8 / 5
    slices = [mask(1, 1, 0, 1), mask(0, 1, 1, 0)]
    assert masking.loss_scale("dr_grpo", slices, alone).item() == 1.6
    assert masking.loss_scale("grpo", slices, alone).item() == 1.6


def test_bnpo_is_scaled_by_all_micro_batches_over_those_with_tokens():
    slices = [mask(1, 1), mask(0, 0), mask(0, 1), mask(0, 0)]
    assert masking.loss_scale("bnpo", slices, alone).item() == 2.0


def test_token_losses_and_empty_batches_are_not_scaled():
    assert masking.loss_scale("dapo", [mask(1, 0)], alone).item() == 1.0
    for loss_type in LOSSES:
        assert masking.loss_scale(loss_type, [mask(0, 0)], alone).item() == 1.0


def test_rows_are_counted_over_all_processes():
    other = torch.tensor([[4, 1]])  # a process with one valid row of four

    def both(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, other])

    # here 4 of 4, there 1 of 4: 8 / 5 on both
    assert masking.loss_scale("dr_grpo", [mask(1, 1, 1, 1)], both).item() == 1.6
