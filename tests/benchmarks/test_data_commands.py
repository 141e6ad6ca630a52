"""What the data commands are compared with gives the same tables, so that times mean something."""

from __future__ import annotations

import datetime

import pytest

from gptoss_tools.data.check import check
from gptoss_tools.data.convert import convert
from gptoss_tools.data.score import score


@pytest.fixture
def legacy(script, tmp_path):
    return script("data_commands").make(tmp_path / "x.csv", 30)


@pytest.mark.parametrize("lean", [False, True])
def test_rewards_row_by_row_are_the_commands_own(script, legacy, tmp_path, lean):
    theirs = tmp_path / "theirs.csv"
    script("row_by_row").reward(str(legacy), str(theirs), lean)
    (file,) = score([legacy]).files
    script("data_commands").compare(file.targets[0], theirs, 30)
    theirs.write_text(theirs.read_text().replace(",0.9", ",0.8"))
    with pytest.raises(SystemExit, match="column "):
        script("data_commands").compare(file.targets[0], theirs, 30)


def test_prompts_row_by_row_are_the_commands_own(script, legacy, tmp_path):
    from gptoss_tools.models.tiny_tokenizer import build_tokenizer

    theirs = tmp_path / "theirs.csv"
    script("row_by_row").convert(str(legacy), str(theirs), build_tokenizer(["a text"], 300))
    (file,) = convert([legacy], date=datetime.date.today().isoformat())
    script("data_commands").compare(file.target, theirs, 30)


def test_the_table_made_has_no_problems_once_it_is_scored_and_converted(script, legacy):
    scored = score([legacy]).files[0].targets[0]
    assert check([convert([scored])[0].target]) == []


def test_the_sample_is_the_first_rows_as_they_stand(script, legacy, tmp_path):
    sample = script("data_commands").head(legacy, tmp_path / "sample.csv", 7)
    whole = legacy.read_bytes()
    assert whole.startswith(sample.read_bytes())
    assert sample.read_text().count("user: ") == 7
