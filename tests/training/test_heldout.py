"""Measuring held-out rows while training changes no bit, and the best adapter is the best one."""

import csv
from pathlib import Path

import pytest
import run_lab

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.publish import read_manifest
from gptoss_tools.core.runs import open_run
from gptoss_tools.data.decisions import load_table
from gptoss_tools.errors import DataError

FIGURES = ("eval_regret", "eval_regret_low", "eval_regret_high", "eval_top1", "eval_invalid")


@pytest.fixture
def lab(tmp_path) -> Path:
    folder = run_lab.furnish(tmp_path)
    rows = (folder / "table.csv").read_text().replace("case", "held")
    (folder / "held.csv").write_text(rows)
    return folder


def held(lab: Path, **more) -> dict:
    return {"eval_steps": 2, "eval_data": [str(lab / "held.csv")], "eval_batch_size": 2, **more}


def figures(run: Path) -> dict[int, dict]:
    records = read_metrics(run / "metrics.jsonl")
    return {r["step"]: {n: r[n] for n in FIGURES} for r in records if "eval_regret" in r}


def test_a_run_with_evaluations_ends_with_the_bits_of_one_without(lab):
    plain = run_lab.run(lab, "plain", gradient_checkpointing=True)
    watched = run_lab.run(lab, "watched", gradient_checkpointing=True, **held(lab))
    assert run_lab.same_bits(plain.adapter, watched.adapter)
    assert list(figures(watched.run)) == [0, 2, 4, 6]
    assert figures(plain.run) == {}
    # one record per step, with the training's figures and the evaluation's in it
    records = read_metrics(watched.run / "metrics.jsonl")
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4, 5, 6]
    assert {"reward", "eval_regret"} <= set(records[2])


def test_noise_is_invalid_and_loses_what_the_worst_action_loses(lab):
    outcome = run_lab.run(lab, "run", **held(lab, eval_steps=3, max_steps=3))
    # q is (0..4, 1.5): the worst action loses |row - 1.5| = 1.5, 0.5, 0.5, 1.5, 2.5
    for record in figures(outcome.run).values():
        assert record["eval_invalid"] == 1
        assert record["eval_regret"] == pytest.approx((1.5 + 0.5 + 0.5 + 1.5 + 2.5) / 5)
        assert record["eval_top1"] == 0
    assert outcome.regret == pytest.approx(1.3)
    assert outcome.best is None  # no adapter was better than the untrained one


def test_a_resumed_run_measures_what_a_straight_one_does(lab):
    straight = run_lab.run(lab, "straight", **held(lab))
    run_lab.run(lab, "cut", **held(lab, max_steps=3, lr_scheduler_type="constant"))
    run_lab.go_on(lab, "cut", max_steps=6)
    assert figures(lab / "cut").keys() == {0, 2, 3, 4, 6}
    shared = figures(straight.run)
    assert {s: figures(lab / "cut")[s] for s in (0, 2, 4, 6)} == shared


def test_held_out_rows_without_values_are_refused_before_anything_is_written(lab):
    lines = (lab / "held.csv").read_text().replace("q_action", "reward_action", 2).splitlines()
    header = "prompt,reward_action_0,reward_action_1"
    body = [",".join(line.split(",")[:3]) for line in lines[1:]]
    (lab / "held.csv").write_text("\n".join([header, *body]) + "\n")
    with pytest.raises(DataError, match=r"held\.csv holds no q_action columns") as caught:
        run_lab.run(lab, "run", **held(lab))
    assert "--eval-data" in caught.value.hint
    assert not (lab / "run").exists()


def test_rows_that_are_trained_on_as_well_are_said(lab):
    from gptoss_tools.training.train import train

    said: list[str] = []
    settings = run_lab.settings(
        lab, "run", eval_steps=2, eval_data=[str(lab / "table.csv")], max_steps=2
    )
    train(settings, on_notice=said.append)
    assert any("5 of 5 held-out prompts are trained on as well" in line for line in said)


@pytest.mark.slow
def test_the_best_adapter_is_the_one_that_lost_least_and_scores_the_same_afterwards(
    tiny, repository, tmp_path
):
    from gptoss_tools.evaluation.metrics import Choices, row_scores
    from gptoss_tools.evaluation.policy import load_policy
    from gptoss_tools.settings import DecodingSettings, TrainSettings
    from gptoss_tools.training.train import train

    [table] = (repository / "data" / "heldout").glob("*.csv")
    with table.open(newline="") as file:
        rows = list(csv.reader(file))[:25]
    small = tmp_path / "held.csv"
    with small.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    outcome = train(
        TrainSettings(
            model=str(tiny),
            data=[str(repository / "data" / "train")],
            output_dir=str(tmp_path / "run"),
            max_steps=8,
            eval_steps=2,
            eval_data=[str(small)],
            num_generations=8,
            prompts_per_step=4,
            gradient_accumulation_steps=1,
            max_completion_length=40,
            learning_rate=5e-3,
            lora_r=8,
            lora_alpha=16,
            invalid_reward=0.0,
            loss_type="dapo",
            gradient_checkpointing=False,
        )
    )
    measured = {step: f["eval_regret"] for step, f in figures(outcome.run).items()}
    assert list(measured) == [0, 2, 4, 6, 8]
    step = min(measured, key=lambda s: (measured[s], s))
    if step == 0:
        pytest.fail("eight steps made nothing better: the test needs another recipe")
    assert read_manifest(outcome.best)["step"] == step
    assert outcome.regret_best == measured[step]
    adapter = open_run(outcome.best).adapter()
    policy = load_policy(adapter.path)
    held_out = load_table(small)
    answers = sorted(
        policy.answer(
            held_out.prompts,
            held_out.n_actions.tolist(),
            decoding=DecodingSettings(max_new_tokens=40),
        ),
        key=lambda answer: answer.index,
    )
    chosen = Choices.of([-1 if a.decision.action is None else a.decision.action for a in answers])
    assert row_scores(held_out, chosen).regret.mean() == pytest.approx(measured[step], abs=1e-12)
