"""The journal keeps what has been answered, and nothing of another evaluation."""

import json

import pytest

from gptoss_tools.errors import RunFolderError
from gptoss_tools.evaluation.journal import Journal

PLAN = {"policy_sha256": "a", "temperature": 1.0}


def test_answers_come_back_under_their_key(tmp_path):
    journal = Journal(tmp_path, PLAN)
    journal.add(("policy", None, "3"), {"action": 1})
    journal.add(("policy", 0, "3"), {"action": 2})
    again = Journal(tmp_path, PLAN)
    assert len(again) == 2
    assert again.get(("policy", None, "3"))["action"] == 1
    assert again.get(("policy", 0, "3"))["action"] == 2
    assert again.get(("base", None, "3")) is None


def test_a_line_that_a_kill_cut_off_is_asked_again_and_the_next_one_is_whole(tmp_path):
    journal = Journal(tmp_path, PLAN)
    journal.add(("policy", None, "0"), {"action": 1})
    with journal.path.open("a") as file:
        file.write('{"who": "policy", "draw": null, "ques')
    cut = Journal(tmp_path, PLAN)
    assert len(cut) == 1
    cut.add(("policy", None, "1"), {"action": 0})
    assert len(Journal(tmp_path, PLAN)) == 2
    assert json.loads(journal.path.read_text().splitlines()[-1])["question"] == "1"


def test_another_plan_is_refused_and_says_what_differs(tmp_path):
    Journal(tmp_path, PLAN)
    with pytest.raises(RunFolderError, match="something else: temperature differ") as caught:
        Journal(tmp_path, {**PLAN, "temperature": 0.5})
    assert "--overwrite" in caught.value.hint


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text("hello\n")
    with pytest.raises(RunFolderError, match="no journal"):
        Journal(tmp_path, PLAN)
