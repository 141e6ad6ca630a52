"""Reading a run's folder: what is found, what is missing, what cannot be read."""

from __future__ import annotations

import json
import math

import pytest
from report_lab import bare_run, small_run, write_json, write_lines

from gptoss_tools.errors import RunFolderError
from gptoss_tools.report.collect import WORST, collect, value_of


def test_a_whole_run_is_read_and_only_the_worst_decisions_keep_their_texts(tmp_path):
    (record,) = collect([small_run(tmp_path / "small")])
    assert (record.label, record.facts.state, record.facts.step) == ("small", "finished", 4)
    assert record.curve("eval_regret") == ([0, 2, 4], [2.0, 0.5, 1.0])
    assert record.n_actions == 2 and record.action_names() == ["off", "full"]
    assert record.asked == {0: 1, 1: 3}  # the column target_action of completions.csv
    assert [row["row"] for row in record.decisions] == [1, 2, 3]
    assert all("prompt" not in row for row in record.decisions)
    # the best answer, row 1, is no mistake; the invalid one lost 2, the wrong one 1
    assert [(row["row"], row["prompt"]) for row in record.worst] == [
        (3, "Hour 8?"),
        (2, "Hour 10?"),
    ]
    assert record.notes == []


def test_a_bare_run_is_empty_and_not_an_error(tmp_path):
    (record,) = collect([bare_run(tmp_path / "bare")])
    assert record.evaluation is None and record.facts.state == "interrupted"
    assert (record.metrics, record.decisions, record.closed_loop, record.asked) == ([], [], [], {})
    assert record.notes == [] and record.n_actions == 0
    assert record.found("regret", "mean") is None


def test_an_evaluation_that_cannot_be_read_is_said_and_left_out(tmp_path):
    run = small_run(tmp_path / "run")
    path = run / "evaluation" / "evaluation.json"
    path.write_text("{torn", encoding="utf-8")
    (record,) = collect([run])
    assert record.evaluation is None
    assert "evaluation.json cannot be read" in record.notes[0]
    assert "gptoss evaluate" in record.notes[0]
    write_json(path, {"format": 2})
    (record,) = collect([run])
    assert record.evaluation is None and "of format 2, this gptoss reads 1" in record.notes[0]


def test_lines_that_a_kill_cut_off_are_skipped_and_counted(tmp_path):
    run = small_run(tmp_path / "run")
    with (run / "evaluation" / "decisions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"row": 4, "reg')
    (record,) = collect([run])
    assert len(record.decisions) == 3
    assert record.notes[0].endswith("decisions.jsonl: 1 line is no JSON object")


def test_the_worst_are_the_costliest_and_of_equal_ones_the_first(tmp_path):
    run = bare_run(tmp_path / "run")
    rows = [{"row": i, "regret": float(i % 3), "reason": "ok"} for i in range(60)]
    write_lines(run / "evaluation" / "decisions.jsonl", rows)
    (record,) = collect([run])
    # 20 rows lost 2: 2, 5, 8, ..., 59
    assert [row["row"] for row in record.worst] == list(range(2, 60, 3))
    assert len(record.worst) == WORST == 20


def test_an_invalid_answer_without_a_known_cost_is_a_mistake_too(tmp_path):
    run = bare_run(tmp_path / "run")
    rows = [
        {"row": 1, "regret": None, "reason": "no_final"},
        {"row": 2, "regret": 0.5, "reason": "ok"},
    ]
    write_lines(run / "evaluation" / "decisions.jsonl", rows)
    (record,) = collect([run])
    assert [row["row"] for row in record.worst] == [2, 1]


def test_runs_of_one_name_are_told_apart_by_path_and_the_same_run_comes_once(tmp_path):
    one, other = bare_run(tmp_path / "a" / "x"), bare_run(tmp_path / "b" / "x")
    assert [r.label for r in collect([one, other, tmp_path / "a" / ".." / "a" / "x"])] == [
        str(one),
        str(other),
    ]


def test_a_missing_run_a_damaged_one_and_an_adapter_are_errors_that_name_them(tmp_path):
    with pytest.raises(RunFolderError, match="nowhere is not there"):
        collect([tmp_path / "nowhere"])
    damaged = bare_run(tmp_path / "damaged")
    (damaged / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"config\.json cannot be read"):
        collect([damaged])
    write_json(tmp_path / "adapter" / "adapter_config.json", {})
    with pytest.raises(RunFolderError, match="is an adapter, not a run"):
        collect([tmp_path / "adapter"])


def test_values_are_read_as_docs_evaluation_writes_them():
    assert value_of("-inf") == -math.inf and value_of(2) == 2.0
    assert math.isnan(value_of(None)) and math.isnan(value_of("much"))


def test_a_completion_log_elsewhere_is_found_from_the_folder_training_ran_in(tmp_path):
    run = small_run(tmp_path / "run", completion_log_path="logs/said.csv")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    write_json(run / "config.json", {**config, "cwd": str(tmp_path)})
    (tmp_path / "logs").mkdir()
    (run / "completions.csv").rename(tmp_path / "logs" / "said.csv")
    (record,) = collect([run])
    assert record.asked == {0: 1, 1: 3}
