"""gptoss runs, and the facts behind it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gptoss_tools.core.overview import list_runs
from gptoss_tools.errors import RunFolderError


def make(folder: Path, created: str = "2026-11-21T09:00:00+0000", **settings) -> Path:
    folder.mkdir(parents=True)
    config = {"created": created, "settings": {"max_steps": 10, **settings}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def metrics(folder: Path, *records: dict) -> None:
    lines = "".join(json.dumps({"segment": 1, **record}) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")


def evaluated(folder: Path, regret: float) -> None:
    (folder / "evaluation").mkdir()
    content = {"format": 1, "regret": {"mean": regret}}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")


def test_runs_are_listed_oldest_first_whatever_their_time_zones(tmp_path):
    make(tmp_path / "c", "2026-11-21T10:00:00+0000")
    make(tmp_path / "a", "2026-11-21T18:30:00+0900")  # 09:30 in UTC
    make(tmp_path / "b", "2026-11-21T09:00:00+0000")
    assert [facts.name for facts in list_runs([tmp_path])] == ["b", "a", "c"]


def test_progress_and_the_newest_invalid_share_come_from_the_metrics(tmp_path):
    run = make(tmp_path / "a")
    metrics(run, {"step": 1, "invalid_share": 0.5}, {"step": 2, "invalid_share": 0.25}, {"step": 3})
    (facts,) = list_runs([run])
    assert (facts.state, facts.step, facts.max_steps) == ("interrupted", 3, 10)
    assert facts.invalid == 0.25 and facts.regret is None


def test_the_regret_is_the_evaluations_else_the_best_while_training(tmp_path):
    run = make(tmp_path / "a")
    metrics(
        run,
        {"step": 0, "eval_regret": 2.0},
        {"step": 5, "eval_regret": 0.5},
        {"step": 9, "eval_regret": 1.0},
    )
    assert list_runs([run])[0].regret == 0.5
    evaluated(run, 0.75)
    assert list_runs([run])[0].regret == 0.75
    (run / "evaluation" / "evaluation.json").write_text("{torn", encoding="utf-8")
    assert list_runs([run])[0].regret == 0.5


def test_the_size_counts_every_file_and_follows_no_link(tmp_path):
    run = make(tmp_path / "a")
    before = list_runs([run])[0].bytes
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "weights").write_bytes(b"x" * 1000)
    (run / "elsewhere").symlink_to(tmp_path / "huge")
    (tmp_path / "huge").write_bytes(b"x" * 100_000)
    # a link's own size is the length of the name it holds
    link = len(os.fsencode(tmp_path / "huge"))
    assert list_runs([run])[0].bytes == before + 1000 + link


def test_folders_that_are_no_runs_are_skipped_and_a_link_to_a_run_is_that_run(tmp_path):
    run = make(tmp_path / "runs" / "first")
    (tmp_path / "runs" / "latest").symlink_to("first")
    make(tmp_path / "runs" / "demo" / "run")  # as `gptoss demo` leaves it
    model = tmp_path / "runs" / "demo" / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt_oss"}', encoding="utf-8")
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs" / "notes").mkdir()
    found = [str(facts.path.relative_to(tmp_path)) for facts in list_runs([tmp_path / "runs", run])]
    assert sorted(found) == ["runs/demo/run", "runs/first"]


def test_a_damaged_run_is_listed_as_such(gptoss, tmp_path):
    make(tmp_path / "runs" / "good")
    bad = tmp_path / "runs" / "bad"
    (bad / "checkpoints").mkdir(parents=True)
    (bad / "config.json").write_text('{"settings": ', encoding="utf-8")
    code, out, err = gptoss("runs", "--json")
    states = {run["name"]: run["state"] for run in json.loads(out)["runs"]}
    assert code == 0 and states == {"good": "interrupted", "bad": "damaged"}
    assert "config.json cannot be read" in err


def test_a_folder_that_does_not_exist_is_an_error(gptoss, tmp_path):
    with pytest.raises(RunFolderError, match="elsewhere is not there"):
        list_runs([tmp_path / "elsewhere"])
    assert gptoss("runs", "elsewhere")[0] == 2
    Path("file").touch()
    assert "is a file, not a folder" in gptoss("runs", "file")[2]


def test_no_runs_at_all_is_a_sentence_and_a_hint(gptoss):
    code, out, err = gptoss("runs")
    assert (code, out.strip()) == (0, "no runs in runs") and "gptoss train-grpo" in err
    assert json.loads(gptoss("runs", "--json")[1]) == {"runs": []}


def test_the_table_shows_one_line_per_run(gptoss, tmp_path):
    run = make(tmp_path / "runs" / "first")
    metrics(run, {"step": 4, "invalid_share": 0.125})
    evaluated(run, 0.5)
    (run / "outcome.json").write_text("{}", encoding="utf-8")
    _code, out, err = gptoss("runs")
    header, _, line = out.splitlines()
    assert header.split() == ["run", "state", "steps", "regret", "invalid", "size", "created"]
    cells = line.split()
    assert cells[:5] == ["runs/first", "finished", "4/10", "0.5", "12.5%"]
    assert cells[6:] == ["B", "2026-11-21", "09:00"]
    assert "gptoss report runs/first" in err
