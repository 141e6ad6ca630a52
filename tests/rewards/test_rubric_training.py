"""A training whose answers a judge grades, from the table to the run folder."""

import csv
import json

import pytest
from judge_lab import ITEMS, ScriptedJudge, honest, says, sends

from gptoss_tools.data.rubrics import dump_rubric
from gptoss_tools.errors import TrainingError
from gptoss_tools.settings import ResumeSettings, TrainSettings
from gptoss_tools.training.train import resume, train


def every_third_unreadable():
    asked = 0

    def behave(handler, request):
        nonlocal asked
        asked += 1
        (says("no JSON") if asked % 3 == 0 else honest)(handler, request)

    return behave


@pytest.mark.slow
def test_failed_judgements_are_masked_a_dead_judge_stops_and_the_run_goes_on(tmp_path):
    asked = [[{"role": "user", "content": f"Which tank, {n}?"}] for n in range(3)]
    rows = [{"prompt": prompt, "rubric": dump_rubric(ITEMS)} for prompt in asked]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"

    with ScriptedJudge(otherwise=every_third_unreadable()) as server:
        settings = TrainSettings(
            model="tiny",
            data=[str(table)],
            output_dir=str(run),
            reward=["rubric"],
            judge_model="keywords",
            judge_url=server.url,
            judge_retries=0,
            judge_concurrency=1,
            num_generations=4,
            prompts_per_step=1,
            gradient_accumulation_steps=2,
            max_completion_length=12,
            max_steps=2,
            save_steps=1,
            device="cpu",
        )

        def dies(progress):
            server.otherwise = sends({"error": {"message": "out of money"}}, 403)

        with pytest.raises(TrainingError, match="out of money") as stopped:
            train(settings, on_step=dies)
        assert f"gptoss resume {run} goes on" in str(stopped.value.hint)
        before = read(run)
        server.otherwise = honest
        assert resume(ResumeSettings(run=str(run))).steps == 2

    assert before["steps"] == [1]
    figures = before["figures"][0]
    assert 0 < figures["judge_failures"] < figures["judge_requests"]
    masked = [row for row in before["rows"] if row["reward"] == ""]
    assert len(masked) == figures["judge_failures"]
    assert all(0.0 <= float(row["reward"]) <= 1.0 for row in before["rows"] if row["reward"])
    assert read(run)["steps"] == [1, 2]


def read(run):
    """Steps, figures of the judge and rows of completions of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [line for line in lines if "judge_requests" in line]
    with (run / "completions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {"steps": [line["step"] for line in figures], "figures": figures, "rows": rows}
