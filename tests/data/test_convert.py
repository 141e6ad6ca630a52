"""Legacy tables become Harmony tables: whole, unchanged elsewhere, and only once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_tools.chat.harmony import parse_legacy, render
from gptoss_tools.data.convert import convert
from gptoss_tools.data.decisions import load_table
from gptoss_tools.data.table_writer import TableWriter
from gptoss_tools.data.tables import read_chunks, values
from gptoss_tools.errors import ConfigError, DataError, RunFolderError

DATE = "2025-01-02"
LEGACY = "system: Answer [k].\nuser: Which?"
HARMONY = render(parse_legacy(LEGACY), date=DATE)
Q = {"q_action_0": ["1.50", "1e0"], "q_action_1": ["2", "-inf"]}
Q3 = {"q_action_0": ["1", "2", "3"], "q_action_1": ["2", "-inf", "0"]}


def table(name, prompts=(LEGACY, HARMONY), **columns):
    with TableWriter(name) as writer:
        writer.write(pd.DataFrame({"prompt": list(prompts), **(columns or Q)}, dtype=object))
    return Path(name)


def column(path, name="prompt"):
    return [cell for chunk in read_chunks(path) for cell in values(chunk, name)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_legacy_rows_are_rendered_and_harmony_rows_pass_through(suffix):
    (result,) = convert([table(f"x{suffix}")], date=DATE)
    assert result.target == Path(f"x_harmony{suffix}")
    assert (result.rows, result.converted, result.passed_through) == (2, 1, 1)
    assert column(result.target) == [HARMONY, HARMONY]
    assert column(result.target, "q_action_0") == ["1.50", "1e0"]


def test_a_published_table_passes_through_byte_for_byte(shared_data, tmp_path):
    for source in sorted((shared_data / "tes" / "q_tables").glob("*.csv")):
        copy = tmp_path / source.name
        copy.write_bytes(source.read_bytes())
        (result,) = convert([copy])
        assert result.target.read_bytes() == source.read_bytes()
        assert (result.converted, result.passed_through) == (0, 30)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_messages_are_kept_as_json_and_render_to_the_same_prompt(suffix):
    (result,) = convert([table(f"x{suffix}")], format="messages")
    kept, passed = column(result.target)
    assert json.loads(kept) == parse_legacy(LEGACY)
    assert passed == HARMONY
    assert load_table(result.target, date=DATE).prompts == [HARMONY, HARMONY]
    (again,) = convert([result.target], date=DATE, suffix="_text")
    assert column(again.target) == [HARMONY, HARMONY]


def test_conversations_in_jsonl_are_rendered():
    Path("x.jsonl").write_text(json.dumps({"prompt": parse_legacy(LEGACY)}) + "\n")
    (result,) = convert(["x.jsonl"], date=DATE)
    assert column(result.target) == [HARMONY]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="|", exclude_categories=("Cs",)), min_size=1),
            st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
        ).filter(lambda row: row[0].strip()),
        min_size=1,
    )
)
def test_every_prompt_is_rendered_and_every_other_cell_untouched(rows):
    source = table("x.csv", [r[0] for r in rows], note=[r[1] for r in rows])
    (result,) = convert([source], date=DATE, overwrite=True)
    assert column(result.target) == [render(parse_legacy(r[0]), date=DATE) for r in rows]
    assert column(result.target, "note") == [r[1] for r in rows]


@pytest.mark.parametrize("format", ["text", "messages"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_row_may_have_a_reasoning_effort_of_its_own(suffix, format):
    source = table(f"x{suffix}", [LEGACY] * 3, reasoning_effort=["high", "", "low"], **Q3)
    (result,) = convert([source], date=DATE, reasoning_effort="medium", format=format)
    rendered = [
        render(parse_legacy(LEGACY), date=DATE, reasoning_effort=effort)
        for effort in ("high", "medium", "low")
    ]
    assert load_table(result.target, date=DATE).prompts == rendered
    if format == "text":
        assert column(result.target) == rendered


def test_an_unknown_reasoning_effort_is_refused():
    source = table("x.csv", reasoning_effort=["low", "max"], **Q)
    with pytest.raises(DataError) as caught:
        convert([source])
    assert str(caught.value) == (
        "x.csv row 2, column reasoning_effort: 'max' is not one of low, medium, high"
    )
    assert os.listdir() == ["x.csv"]


def test_other_encodings_become_utf8():
    text = f'prompt;メモ\n"{LEGACY}";夏\n'
    Path("x.csv").write_bytes(text.encode("cp932"))
    (result,) = convert(["x.csv"], encoding="cp932", delimiter=";", date=DATE)
    assert column(result.target, "メモ") == ["夏"]


def test_a_folder_never_converts_its_own_outputs():
    Path("d").mkdir()
    table("d/x.csv")
    convert(["d"])
    with pytest.raises(RunFolderError, match=r"x_harmony\.csv exists") as caught:
        convert(["d"])
    assert "--overwrite" in caught.value.hint
    assert [r.source.name for r in convert(["d"], overwrite=True)] == ["x.csv"]
    assert sorted(os.listdir("d")) == ["x.csv", "x_harmony.csv"]


def test_a_later_stage_made_from_an_older_output_is_reported():
    table("x.csv")
    assert convert(["x.csv"])[0].stale is None
    table("x_harmony_with_reward.csv")
    (result,) = convert(["x.csv"], overwrite=True)
    assert result.stale == Path("x_harmony_with_reward.csv")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("user: a <|end|> b", r"b\.csv row 2: the prompt contains <\|end\|>"),
        ("  ", r"b\.csv row 2: the prompt is empty"),
        ('[{"role": "bot", "content": "x"}]', r"b\.csv row 2: message 1 has the unknown role"),
    ],
)
def test_one_bad_row_names_itself_and_nothing_is_written(prompt, message):
    table("a.csv")
    table("b.csv", [LEGACY, prompt])
    for dry_run in (True, False):
        with pytest.raises(DataError, match=message):
            convert(["a.csv", "b.csv"], dry_run=dry_run)
    assert sorted(os.listdir()) == ["a.csv", "b.csv"]


def test_a_dry_run_counts_and_writes_nothing():
    table("x.csv")
    seen = []
    (result,) = convert(["x.csv"], dry_run=True, on_progress=lambda path, rows: seen.append(rows))
    assert (result.rows, result.converted, seen) == (2, 1, [2])
    assert os.listdir() == ["x.csv"]


def test_a_table_without_prompts_says_what_it_has():
    with TableWriter("x.csv") as writer:
        writer.write(pd.DataFrame({"text": ["a"], "b": ["c"]}))
    with pytest.raises(DataError, match=r"x\.csv has no column prompt") as caught:
        convert(["x.csv"])
    assert "text, b" in caught.value.hint


def test_outputs_that_clash_with_inputs_are_refused():
    table("x.csv")
    table("x_harmony.csv")
    with pytest.raises(RunFolderError, match="is an input and also the output"):
        convert(["x.csv", "x_harmony.csv"], overwrite=True)
    for suffix in ("", "/x"):
        with pytest.raises(ConfigError, match="suffix"):
            convert(["x.csv"], suffix=suffix)
