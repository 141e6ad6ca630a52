"""The main job from end to end, as processes, the way a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def gptoss_process(*arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "gptoss_tools", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_demo_learns_is_killed_goes_on_exports_evaluates_and_reports():
    done = gptoss_process("demo", "--out", "demo", "--json")
    result = json.loads(done.stdout)
    halfway = (result["reward_uniform"] + result["reward_best"]) / 2
    assert result["reward_after"] >= halfway
    assert result["reward_after"] > result["reward_fixed"]
    assert result["reward_before"] < halfway
    assert result["invalid_after"] <= 0.02
    # bfloat16 rounding of the merged weights may turn a few close decisions
    assert result["reward_exported"] == pytest.approx(result["reward_after"], abs=0.03)
    assert 0 < result["killed_after_step"] < 200
    starts = Path("demo/run/metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["segment"] for line in starts} == {1, 2}
    assert json.loads(starts[-1])["step"] == 200
    # better than its base on the same rows, and not by luck
    assert result["regret_after"] < result["regret_before"]
    assert result["difference"]["ci95"][1] < 0
    assert result["regret_exported"] == pytest.approx(result["regret_after"], abs=0.05)
    kg = result["kg_co2"]
    assert kg["optimal"] < kg["policy"] < kg["base"] and kg["policy"] < kg["random"]
    evaluation = json.loads(Path("demo/run/evaluation/evaluation.json").read_text())
    assert (evaluation["n_rows"], evaluation["n_episodes"]) == (144, 12)
    for policy in evaluation["closed_loop"]["policies"]:
        assert policy["regret_sum"] == pytest.approx(policy["loss"], abs=1e-9)
    assert "<html" in Path(result["report"]).read_text(encoding="utf-8")
    assert (Path("demo/run/adapter-best") / "adapter_model.safetensors").is_file()
    [listed] = json.loads(gptoss_process("runs", "demo", "--json").stdout)["runs"]
    assert listed["state"] == "finished" and listed["regret"] == result["regret_after"]


def test_published_tables_go_the_whole_way_to_a_short_training(shared_data):
    data = Path("data")
    shutil.copytree(shared_data / "tes" / "q_tables", data)
    data.chmod(0o755)
    tables = sorted(data.glob("*.csv"))
    for path in tables:
        path.chmod(0o644)
    report = json.loads(gptoss_process("convert-harmony", *tables, "--json").stdout)
    assert [f["passed_through"] for f in report["files"]] == [30, 30]
    for file in report["files"]:
        assert Path(file["target"]).read_bytes() == Path(file["source"]).read_bytes()
        Path(file["target"]).unlink()
    gptoss_process("calc-reward", data, "--tau", "0.05")
    assert json.loads(gptoss_process("check-data", data, "--json").stdout)["problems"] == []
    done = gptoss_process(
        *("train-grpo", "--model", "tiny", "--data", data, "--output-dir", "run"),
        *("--max-prompt-length", 4000, "--max-completion-length", 24, "--max-steps", 2),
        *("--num-generations", 4, "--gradient-accumulation-steps", 1, "--json"),
    )
    assert json.loads(done.stdout)["steps"] == 2
    assert Path("run/adapter/adapter_model.safetensors").exists()


def test_train_with_resume_goes_on_and_the_shipped_tables_train_as_they_are(repository):
    common = ("--model", "tiny", "--data", repository / "data" / "train", "--save-steps", 2)
    small = ("--num-generations", 4, "--max-completion-length", 16, "--max-steps", 4)
    gptoss_process("train-grpo", *common, *small, "--output-dir", "a", "--json")
    shutil.copytree("a", "b")
    shutil.rmtree("b/adapter")
    Path("b/outcome.json").unlink()
    resumed = gptoss_process("train-grpo", "--resume", "b/checkpoints/step-000002", "--json")
    assert json.loads(resumed.stdout)["steps"] == 4
    name = "adapter/adapter_model.safetensors"
    assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    again = ("train-grpo", "--resume", "b/checkpoints/step-000002")
    changed = gptoss_process(*again, "--learning-rate", 1, check=False)
    assert changed.returncode == 2 and "learning_rate" in changed.stderr


def test_a_prompt_from_standard_input_is_answered_the_same_by_packed_experts():
    line = [sys.executable, "-m", "gptoss_tools", "generate", "tiny", "--prompt", "-"]
    done = subprocess.run(
        [*line, "--max-new-tokens", "20"],
        input="user: Answer [0] or [1].",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "action:" in done.stdout
    again = subprocess.run(
        [*line, "--max-new-tokens", "20", "--experts", "packed"],
        input="user: Answer [0] or [1].",
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
