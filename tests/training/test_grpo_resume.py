"""N steps at once and k + (N - k) steps give the same bits."""

from __future__ import annotations

from pathlib import Path

import grpo_lab as lab
import pytest
import torch
from transformers import TrainerCallback

from gptoss_tools.core.publish import is_complete
from gptoss_tools.errors import RunFolderError

# name: (step resumed from, of how many, settings). Three rows, one of them always masked: every
# case goes over the table several times and has steps or micro-steps without any reward.
CASES = {
    "one draw per generation": (
        3,
        6,
        {"steps_per_generation": 1, "gradient_accumulation_steps": 2},
    ),
    "one generation per step": (3, 6, {"gradient_accumulation_steps": 2}),
    "a generation for two steps, cut in the middle": (3, 6, {"steps_per_generation": 2}),
    "a generation for two accumulated steps, cut in the middle": (
        3,
        6,
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
    ),
    "a generation used twice, cut in the middle": (3, 6, {"num_iterations": 2}),
    "three steps per generation, used twice, cut at 5": (
        5,
        8,
        {"steps_per_generation": 3, "num_iterations": 2},
    ),
    "beyond several passes": (31, 34, {}),
    "dropout": (3, 6, {"lora_dropout": 0.2, "num_iterations": 2}),
    "a KL term": (3, 6, {"beta": 0.1, "steps_per_generation": 2}),
    "gradient checkpointing": (3, 6, {"gradient_checkpointing": True, "steps_per_generation": 2}),
    "dapo with scaled rewards": (3, 6, {"loss_type": "dapo", "scale_rewards": "group"}),
    "logging every fourth step": (3, 6, {"logging_steps": 4, "steps_per_generation": 2}),
}
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
# `train_loss` is the mean over the steps of one call of train(), by Trainer's own definition.
TIMES |= {"train_loss"}


class StopAfter(TrainerCallback):
    """An interruption as a user makes it: the run knows its full length and ends early."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def run_of(folder: Path, total: int, changes: dict) -> tuple[lab.DecisionTrainer, list]:
    records: list = []
    values = {
        "rows": 3,
        "num_generations": 4,
        "max_completion_length": 4,
        "save_steps": 100,
        "seed": 2,
    }
    values |= {"max_steps": total, "dropout": changes.get("lora_dropout", 0.0)} | changes
    return lab.trainer(folder, on_completions=records.extend, **values), records


def logged(run) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in run.state.log_history]


def assert_same_bits(one, other) -> None:
    for (name, a), b in zip(lab.weights(one).items(), lab.weights(other).values(), strict=True):
        assert torch.equal(a, b), name
    states = [r.optimizer.state_dict()["state"] for r in (one, other)]
    assert states[0].keys() == states[1].keys() and states[0]
    for index, moments in states[0].items():
        for name, value in moments.items():
            assert torch.equal(value, states[1][index][name]), (index, name)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_with_the_bits_of_one_that_never_stopped(tmp_path, case):
    cut, total, changes = CASES[case]
    straight, all_records = run_of(tmp_path / "straight", total, changes)
    straight.train()
    masked = [r for r in all_records if r["reward"] is None]
    assert 0 < len(masked) < len(all_records)
    assert any(r["row"] == lab.ALWAYS_MASKED_ROW for r in all_records)

    first, records = run_of(tmp_path / "cut", total, {**changes, "save_steps": cut})
    first.add_callback(StopAfter(cut))
    first.train()
    assert first.state.global_step == cut

    second, later = run_of(tmp_path / "cut", total, changes)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / f"step-{cut:06d}"))
    assert second.state.global_step == total
    assert_same_bits(straight, second)
    assert records + later == all_records
    assert logged(straight) == logged(second)


def test_a_resume_does_differ_without_the_rollout_state(tmp_path):
    # The test above would mean nothing if the state were not needed.
    cut, total, changes = CASES["a generation for two steps, cut in the middle"]
    straight, _ = run_of(tmp_path, total, {**changes, "save_steps": cut})
    straight.train()
    (tmp_path / "step-000003" / "rollout_state_0.pt").unlink()
    second, _ = run_of(tmp_path / "second", total, {**changes, "allow_changes": True})
    second.train(resume_from_checkpoint=str(tmp_path / "step-000003"))
    with pytest.raises(AssertionError):
        assert_same_bits(straight, second)


def test_checkpoints_appear_whole_under_their_step(tmp_path):
    run, _ = run_of(tmp_path, 4, {"save_steps": 2})
    run.train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000004"]
    for folder in tmp_path.iterdir():
        assert is_complete(folder)
        names = {p.name for p in folder.iterdir()}
        assert {"adapter_model.safetensors", "optimizer.pt", "rollout_state_0.pt"} <= names


def test_a_failed_save_leaves_no_checkpoint(tmp_path, monkeypatch):
    run, _ = run_of(tmp_path, 2, {"save_steps": 2})

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(run, "_save_rng_state", fail)
    with pytest.raises(OSError, match="disk full"):
        run.train()
    assert not list(tmp_path.glob("step-*"))
    assert run.args.output_dir == str(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"gradient_accumulation_steps": 2}, {"num_generations": 2}, {"num_iterations": 2}]
)
def test_a_checkpoint_of_another_batch_layout_is_refused(tmp_path, changes):
    run, _ = run_of(tmp_path, 2, {"save_steps": 2})
    run.train()
    other, _ = run_of(tmp_path / "other", 4, changes)
    with pytest.raises(RunFolderError, match="batch layout"):
        other.train(resume_from_checkpoint=str(tmp_path / "step-000002"))


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    # constant rate: the schedule does not depend on the number of steps, so the bits agree too
    constant = {"lr_scheduler_type": "constant", "steps_per_generation": 2}
    straight, _ = run_of(tmp_path / "straight", 5, constant)
    straight.train()
    short, _ = run_of(tmp_path / "short", 3, {**constant, "save_steps": 3})
    short.train()
    longer, _ = run_of(tmp_path / "short", 5, constant)
    longer.train(resume_from_checkpoint=str(tmp_path / "short" / "step-000003"))
    assert_same_bits(straight, longer)
