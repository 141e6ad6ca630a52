from __future__ import annotations

import json

import pytest

from gptoss_tools.console import Console, align


@pytest.mark.parametrize(
    ("mode", "stdout", "stderr"),
    [
        ("human", "rows: 3\n", "reading\nwarning: odd\nhint: next\n"),
        ("json", '{\n  "rows": 3\n}\n', "reading\nwarning: odd\n"),
        ("quiet", "rows: 3\n", "warning: odd\n"),
    ],
)
def test_results_go_to_stdout_and_all_else_to_stderr(capsys, mode, stdout, stderr):
    console = Console()
    console.mode = mode
    console.notice("reading")
    console.warning("odd")
    console.result({"rows": 3})
    console.hint("next")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (stdout, stderr)


def test_json_holds_null_for_nan_and_plain_text_for_paths(capsys, tmp_path):
    console = Console()
    console.mode = "json"
    console.result({"nan": float("nan"), "path": tmp_path, "nested": [{"inf": float("inf")}]})
    assert json.loads(capsys.readouterr().out) == {
        "nan": None,
        "path": str(tmp_path),
        "nested": [{"inf": None}],
    }


def test_columns_of_numbers_stand_right_and_text_left():
    rows = [{"name": "a", "n": 1}, {"name": "long", "n": 123}]
    assert align(rows) == "name    n\n----  ---\na       1\nlong  123"
    assert align([]) == "(nothing)"


def test_off_a_terminal_progress_is_a_line_every_few_steps(capsys):
    with Console().progress("step", 25, every=10) as update:
        for done in range(1, 26):
            update(done, reward=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
    assert all("reward 0.5" in line for line in lines)
