"""The table of tasks: where there are some, beside what else a run's evaluation holds."""

from __future__ import annotations

import pytest
from report_lab import bare_run, evaluation, small_run, write_json

from gptoss_tools.report.collect import collect
from gptoss_tools.report.figures import sections
from gptoss_tools.report.page import write_report

ACC = {
    "policy": 0.5, "stderr": 0.025, "base": 0.375, "base_stderr": 0.0125,
    "difference": 0.125, "difference_stderr": 0.05,
}  # fmt: skip
PPL = {"policy": 7.25, "stderr": None, "base": None, "base_stderr": None, "difference": None}
TASKS = {
    "arc_easy": {"n": 1200, "part_of": None, "metrics": {"acc": ACC, "ppl": PPL}},
    "mmlu": {"n": 40, "part_of": None, "metrics": {"acc": ACC}},
    "mmlu_law": {"n": 20, "part_of": "mmlu", "metrics": {"acc": ACC}},
}


@pytest.fixture
def run(tmp_path):
    return small_run(tmp_path / "run")


def named(records, name: str):
    return next((section for section in sections(records) if section.id == name), None)


def test_tasks_are_a_table_of_base_policy_and_difference(run):
    write_json(run / "evaluation" / "evaluation.json", evaluation() | {"tasks": TASKS})
    (table,) = named(collect([run]), "tasks").tables
    assert table.head == ["task", "metric", "examples", "base", "policy", "difference"]
    acc = ["0.375\n± 0.0125", "0.500\n± 0.0250", "0.125\n± 0.0500"]
    assert table.rows == [
        ["arc_easy", "acc", "1\N{THIN SPACE}200", *acc],
        ["arc_easy", "ppl", "1\N{THIN SPACE}200", "\N{EN DASH}", "7.25", "\N{EN DASH}"],
        ["mmlu", "acc", "40", *acc],  # its parts are in its own row
    ]
    page = write_report([run]).read_text(encoding="utf-8")
    assert '<a href="#tasks">Tasks</a>' in page and "0.125<small>± 0.0500</small>" in page


def test_without_tasks_there_is_no_section(run):
    records = collect([run])
    assert records[0].tasks == {} and named(records, "tasks") is None


def test_an_evaluation_of_tasks_alone_is_none_of_decisions(tmp_path):
    run = bare_run(tmp_path / "bare")
    write_json(run / "evaluation" / "evaluation.json", {"format": 1, "tasks": TASKS})
    records = collect([run])
    assert records[0].evaluation is None and list(records[0].tasks) == list(TASKS)
    assert "gptoss evaluate" in named(records, "regret").missing[0]
    assert len(named(records, "tasks").tables) == 1
    page = write_report([run]).read_text(encoding="utf-8")
    assert "0.500<small>± 0.0250</small>" in page


def test_a_damaged_part_shows_as_far_as_it_can_be_read(run):
    broken = {"a": {"metrics": {"acc": {"policy": "x"}}}, "b": 3, "c": {"n": 1}}
    write_json(run / "evaluation" / "evaluation.json", evaluation() | {"tasks": broken})
    (table,) = named(collect([run]), "tasks").tables
    assert table.rows == [["a", "acc", *["\N{EN DASH}"] * 4]]
