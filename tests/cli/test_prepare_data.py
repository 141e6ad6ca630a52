"""prepare-data from the command line, and what names it as the way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptoss_tools import registry
from gptoss_tools.data.decisions import load_table
from gptoss_tools.data.prepare_formats import KIND
from gptoss_tools.errors import DataError

GSM = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}", "tags": ["sum"]} for n in range(30)]


@pytest.fixture(autouse=True)
def formats_as_they_were(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setitem(registry._PARTS, KIND, registry.parts(KIND))


def lines(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_it_shows_what_became_of_every_row_and_names_the_next_commands(gptoss):
    data = lines("a.jsonl", [*GSM, GSM[0], {"question": "", "answer": "#### 1", "tags": []}])
    code, out, err = gptoss("prepare-data", data, "--out", "o", "--train-fraction", "0.5")
    assert code == 0
    assert re.search(r"^read +32$", out, re.M) and re.search(
        r"^duplicate +1 +a.jsonl row 31", out, re.M
    )
    assert "no question" in out and "a.jsonl: 30 of 32 rows (gsm8k)" in out
    assert "columns left out (lists, objects, or names that are taken): tags" in out
    assert "train-grpo --data o/train.jsonl --eval-data o/test.jsonl --reward NAME" in err
    _, out, err = gptoss("check-data", "o")
    assert "prompts, " in out and "train-grpo --data o/train.jsonl --reward NAME" in err
    found = json.loads(gptoss("prepare-data", data, "--dry-run", "--json")[1])
    assert (found["written"], found["report"]["read"]) == (False, 32)


def test_a_side_without_rows_is_said(gptoss):
    assert "no rows for evaluation" in gptoss("prepare-data", lines("a.jsonl", GSM[:1]))[2]
    _, _, err = gptoss("prepare-data", "a.jsonl", "--train-fraction", "1", "--out", "b")
    assert "warning" not in err and "--eval-data" not in err


def test_strict_is_an_error_that_names_the_rows(gptoss):
    code, _, err = gptoss("prepare-data", lines("a.jsonl", [*GSM, GSM[0]]), "--strict")
    assert code == 2 and "1 of 31 rows must be left out: 1 duplicate (first: a.jsonl row 31)" in err


@pytest.mark.parametrize("data", ["raw.jsonl", "raw.json", "openai/gsm8k"])
def test_raw_data_and_hub_ids_name_this_command(gptoss, data):
    lines("raw.jsonl", GSM)
    Path("raw.json").write_text(json.dumps(GSM))
    code, _, err = gptoss("evaluate", "tiny", "--data", data)
    assert code == 2 and f"gptoss prepare-data {data}" in err
    with pytest.raises(DataError) as caught:  # as train-grpo reads its tables
        load_table([data])
    assert f"gptoss prepare-data {data}" in caught.value.hint


def test_the_format_shown_in_the_contributors_guide_works(gptoss, repository):
    guide = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = guide.split("## A dataset format, in one place")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    Path("my_formats.py").write_text(code)
    row = {"id": "s1", "context": "Bees dance.", "question": "Who dances?", "title": "Bees"}
    spans = {"text": ["Bees"], "answer_start": [0]}
    none = {"text": [], "answer_start": []}
    lines("squad.jsonl", [{**row, "answers": spans}, {**row, "answers": none}])
    command = re.search(r"`gptoss (prepare-data.*?)`", section, re.S)[1].split()
    code, out, err = gptoss(*command, "--train-fraction", "1", "--out", "o")
    assert code == 0, err
    assert "no answer in the passage" in out and "(squad)" in out
    (found,) = map(json.loads, Path("o/train.jsonl").read_text().splitlines())
    assert found.pop("id") != "s1"
    assert found == {
        "prompt": [{"role": "user", "content": "Bees dance.\n\nWho dances?"}],
        "answer": "Bees",
        "source": "squad.jsonl",
        "original_id": "s1",
        "title": "Bees",
    }


def test_a_format_that_fails_is_named_with_the_row(gptoss):
    Path("broken_format.py").write_text(
        "from gptoss_tools.data.prepare_formats import data_format\n"
        "@data_format('broken', ('question',))\n"
        "def broken(cells):\n    return cells['nothing']\n"
    )
    lines("a.jsonl", GSM)
    code, _, err = gptoss("prepare-data", "a.jsonl", "--data-format", "broken_format:broken")
    assert code == 2 and "a.jsonl row 1: the format broken raises KeyError: 'nothing'" in err


def test_the_page_on_datasets_lists_every_format(repository):
    page = (repository / "docs" / "datasets.md").read_text(encoding="utf-8")
    for part in registry.parts(KIND).values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{part.name}`"))
        for name in {column for need in part.columns for column in need.split("|")}:
            assert f"`{name}`" in row, (part.name, name)
