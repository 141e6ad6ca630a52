"""evaluate --tasks: what is run, what is not run again, and what evaluation.json then holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tasks_lab import random_lora, write_tasks

from gptoss_tools.errors import RunFolderError
from gptoss_tools.evaluation import tasks as running
from gptoss_tools.evaluation.policy import load_policy
from gptoss_tools.evaluation.task_work import evaluate_tasks, prepare_tasks
from gptoss_tools.evaluation.tasks import run_tasks
from gptoss_tools.settings import EvaluateSettings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs pip install 'gptoss-tools[eval]'"
)
TABLE = (
    "episode,prompt,q_action_0,q_action_1\n"
    "e,<|start|>user<|message|>case 1<|end|><|start|>assistant,0,1\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def adapter(untrained, tmp_path_factory):
    return random_lora(untrained, tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture
def asked(monkeypatch):
    """The names of all tasks that are run, in order; after a first None, the third is cut off."""
    names: list[str | None] = []
    run = running.Loaded.run

    def listening(self, *arguments, **options):
        names.append(self.name)
        if names[:1] == [None] and len(names) > 3:
            raise KeyboardInterrupt
        return run(self, *arguments, **options)

    monkeypatch.setattr(running.Loaded, "run", listening)
    return names


def settings(target: Path, folder: Path, **more) -> EvaluateSettings:
    own = {"tasks": ["levels", "endings"], "task_folder": str(folder), "out": "ev"}
    return EvaluateSettings(target=str(target), **{**own, **more})


def content() -> dict:
    return json.loads(Path("ev/evaluation.json").read_text())


def test_the_command_line_sets_the_adapter_beside_its_base(gptoss, untrained, adapter, folder):
    names = "levels,endings"
    line = ("evaluate", adapter, "--tasks", names, "--task-folder", folder, "--out", "ev")
    code, text, error = gptoss(*line, "--json", "--limit", "6")
    assert code == 0, error
    found = json.loads(text)
    assert found == content() and set(found["tasks"]) == {"levels", "endings"}
    assert "task levels, policy: 6 examples" in error and "task endings, base: 6" in error
    policy = run_tasks(load_policy(adapter), names.split(","), limit=6, include_path=folder)
    base = run_tasks(load_policy(untrained), names.split(","), limit=6, include_path=folder)
    for name, metric in (("levels", "acc"), ("endings", "perplexity")):
        row = found["tasks"][name]
        assert (row["n"], row["limit"], row["seed"], row["base"]) == (6, 6, 42, str(untrained))
        figures = row["metrics"][metric]
        assert figures["policy"] == policy["tasks"][name]["metrics"][metric]["value"]
        other = base["tasks"][name]["metrics"][metric]["value"]
        assert figures["base"] == pytest.approx(other, rel=1e-4)
        assert figures["difference"] == figures["policy"] - figures["base"]
    assert figures["difference"] != 0
    assert not Path("ev/decisions.jsonl").exists()  # --tasks alone asks no table


def test_finished_tasks_are_not_run_again_after_an_interruption(gptoss, adapter, folder, asked):
    line = ("evaluate", adapter, "--tasks", "levels,endings", "--task-folder", folder)
    asked.append(None)
    assert gptoss(*line, "--out", "ev")[0] == 130
    assert asked[1:] == ["levels", "endings", "levels"]  # the last one of the base
    assert not Path("ev/evaluation.json").exists()
    with Path("ev/tasks.jsonl").open("a") as journal:
        journal.write('{"task": "levels", "mod')  # a kill in the middle of a line
    asked.clear()
    code, _, error = gptoss(*line, "--out", "ev")
    assert code == 0 and asked == ["levels", "endings"]  # both of the base
    assert "2 finished tasks are in ev/tasks.jsonl already" in error
    cut = content()["tasks"]
    asked.clear()
    gptoss(*line, "--out", "whole")
    assert len(asked) == 4
    assert cut == json.loads(Path("whole/evaluation.json").read_text())["tasks"]


def test_another_limit_or_another_definition_is_run_and_older_tasks_stay(
    untrained, folder, tmp_path, asked
):
    own = write_tasks(tmp_path / "own")
    evaluate_tasks(prepare_tasks(settings(untrained, own, limit=2)))
    assert asked == ["levels", "endings"]
    evaluate_tasks(prepare_tasks(settings(untrained, own, limit=3, tasks=["levels"])))
    assert asked[2:] == ["levels"]
    assert {name: row["n"] for name, row in content()["tasks"].items()} == {
        "levels": 3, "endings": 2,
    }  # fmt: skip
    text = (own / "levels.yaml").read_text()
    (own / "levels.yaml").write_text(text.replace("Question:", "Asked:"))
    evaluate_tasks(prepare_tasks(settings(untrained, own, limit=3)))
    assert asked[3:] == ["levels", "endings"]
    evaluate_tasks(prepare_tasks(settings(untrained, own, limit=3)))
    assert len(asked) == 5
    evaluate_tasks(prepare_tasks(settings(untrained, own, limit=3, overwrite=True)))
    assert len(asked) == 7


def test_tasks_and_decisions_live_in_one_file_and_neither_removes_the_other(
    gptoss, untrained, folder
):
    Path("t.csv").write_text(TABLE)
    line = ("evaluate", untrained, "--out", "ev", "--max-new-tokens", "4", "--data", "t.csv")
    tasks = ("--tasks", "levels", "--task-folder", folder, "--limit", "2")
    evaluate_tasks(prepare_tasks(settings(untrained, folder, tasks=["levels"], limit=2)))
    alone = content()["tasks"]
    code, _, error = gptoss(*line)
    assert code == 0, error
    assert content()["n_rows"] == 1 and content()["tasks"] == alone
    gptoss(*line, "--overwrite")
    assert content()["n_rows"] == 1 and content()["tasks"] == alone
    gptoss("evaluate", untrained, "--out", "ev", *tasks, "--overwrite")
    assert content()["n_rows"] == 1 and content()["tasks"] == alone
    code, text, error = gptoss(*line[:2], "--out", "both", *line[4:], *tasks)
    assert code == 0, error
    assert "1 decisions in 1 episodes" in text and "levels  acc" in text
    both = json.loads(Path("both/evaluation.json").read_text())
    assert both["n_rows"] == 1 and both["tasks"] == alone


def test_a_folder_of_other_weights_is_refused_and_replaced_only_on_demand(
    untrained, adapter, folder
):
    only = {"tasks": ["levels"], "limit": 2}
    evaluate_tasks(prepare_tasks(settings(untrained, folder, **only)))
    with pytest.raises(RunFolderError, match="ev holds an evaluation of something else"):
        evaluate_tasks(prepare_tasks(settings(adapter, folder, **only)))
    assert content()["label"].startswith("model in")
    evaluate_tasks(prepare_tasks(settings(adapter, folder, overwrite=True, **only)))
    assert content()["tasks"]["levels"]["metrics"]["acc"]["base"] is not None
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="mine is not empty"):
        evaluate_tasks(prepare_tasks(settings(adapter, folder, **only, out="mine")))


def test_a_base_of_its_own_is_loaded_apart(untrained, adapter, folder):
    only = {"tasks": ["levels"], "limit": 4, "compare_with": str(untrained)}
    result = evaluate_tasks(prepare_tasks(settings(untrained, folder, **only)))
    acc = result["tasks"]["levels"]["metrics"]["acc"]
    assert acc["base"] == acc["policy"] and acc["difference"] == acc["difference_stderr"] == 0


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(gptoss, untrained, folder):
    line = ("evaluate", untrained, "--tasks", "levels, endings", "--task-folder", folder)
    code, text, _ = gptoss(*line, "--limit", "5", "--dry-run", "--json", "--out", "ev")
    plan = json.loads(text)
    assert code == 0 and plan["tasks"] == ["levels", "endings"] and plan["limit"] == 5
    assert "rows" not in plan and not Path("ev").exists()
