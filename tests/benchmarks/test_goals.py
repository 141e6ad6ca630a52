"""The table of goals says what was measured, where, and what was not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def goals(script):
    return script("goals")


def test_a_goal_is_met_on_its_better_side(goals):
    assert goals.goal("ratio", 5.0, 5, "higher")["met"] is True
    assert goals.goal("ratio", 4.9, 5, "higher")["met"] is False
    assert goals.goal("seconds", 0.2, 0.25, "lower")["met"] is True
    assert goals.goal("seconds", 0.3, 0.25, "lower")["met"] is False
    assert goals.goal("seconds", None, 0.25, "lower")["met"] is None


def test_all_results_become_one_table_by_machine(goals, tmp_path):
    cpu = {"machine": {"cpu": "X", "cores": 2}}
    rows = [goals.goal("ratio", 5.763, 5, "higher"), goals.goal("peak", None, 20, "lower")]
    goals.write(tmp_path, "b", "python b.py", cpu | {"goals": rows})
    gpu = {"machine": {"cpu": "Y", "cores": 16, "gpu": "Z"}}
    goals.write(
        tmp_path, "a", "python a.py", gpu | {"goals": [goals.goal("step", 13.0, 12.4, "lower")]}
    )
    (tmp_path / "plain.json").write_text('{"rows": []}')
    found = goals.collect(tmp_path)
    assert [row["name"] for row in found] == ["step", "ratio", "peak"]
    assert {key: found[1][key] for key in ("value", "goal", "better", "met", "command")} == {
        "value": 5.763,
        "goal": 5,
        "better": "higher",
        "met": True,
        "command": "python b.py",
    }
    said = goals.table(found)
    assert "16 cores of Y, Z\n" in said
    assert "| step | 13 | <= 12.4 | no | `python a.py` |" in said
    assert "2 cores of X\n" in said
    assert "| ratio | 5.763 | >= 5 | yes | `python b.py` |" in said
    assert "| peak | not measured | <= 20 |  | `python b.py` |" in said


def test_the_committed_table_is_that_of_the_committed_results(goals, pytestconfig):
    folder = pytestconfig.rootpath / "benchmarks"
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert kept == goals.collect(folder / "results")
    assert goals.table(kept) in (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_gpu_benchmark_runs_at_tiny_shapes_and_says_what_it_cannot_show(tmp_path, pytestconfig):
    command = [sys.executable, pytestconfig.rootpath / "benchmarks" / "gpu_20b.py"]
    options = ["--size", "tiny", "--stages", "micro_batch", "--experts", "packed"]
    done = subprocess.run(
        [*command, *options, "--out", tmp_path], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "not shown here, for want of a GPU: 20b, packed: peak GB" in done.stdout
    record = json.loads((tmp_path / "gpu_20b.json").read_text(encoding="utf-8"))
    assert [row["met"] for row in record["goals"]] == [True, None, None, None]
    (row,) = record["rows"]
    # 4 completions of 8 tokens on a prompt of at most 60
    assert 4 * (60 + 8) - 40 <= row["tokens"] <= 4 * (60 + 8)
    assert row["repeated_tokens_per_second"] > 0 < row["shared_tokens_per_second"]
