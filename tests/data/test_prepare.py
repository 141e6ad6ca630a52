"""The split of a dataset, the files that hold it, and the report of what was left out."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.data import prepare as module
from gptoss_tools.data.decisions import load_table
from gptoss_tools.data.prepare import prepare, prepare_rows
from gptoss_tools.data.tables import read_chunks
from gptoss_tools.errors import DataError, MachineError, RunFolderError
from gptoss_tools.settings import PrepareDataSettings, PrepareRowSettings

GSM = [{"question": f"What is {n} + {n}?", "answer": f"Twice.\n#### {2 * n}"} for n in range(60)]


def lines(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def run(*paths, **options):
    return prepare(PrepareDataSettings(paths=list(paths), out="out", **options))


def sides(rows, **options):
    """Side of each question: True trains."""
    found = prepare_rows(rows, PrepareRowSettings(**options))
    return {
        row["prompt"][-1]["content"]: train
        for train, part in ((True, found.train), (False, found.test))
        for row in part
    }


def questions(path):
    return [row["prompt"][-1]["content"] for row in map(json.loads, Path(path).open())]


texts = st.lists(st.text(alphabet="abcXYZ é1?", min_size=1, max_size=6), min_size=1, max_size=12)


def as_rows(names):
    return [{"question": name, "answer": f"#### {n}"} for n, name in enumerate(names)]


def good(names):
    return [name for name in names if name.strip()]


@given(texts, texts, st.integers(0, 2**32 - 1), st.floats(0.1, 1), st.randoms())
@settings(max_examples=60, deadline=None)
def test_no_row_moves_when_data_grow_shrink_or_come_in_another_order(
    first, more, seed, fraction, random
):
    first, more = [*good(first), "kept"], good(more)
    options = {"seed": seed, "train_fraction": fraction}
    before = sides(as_rows(first), **options)
    shuffled = as_rows([*first, *more])
    random.shuffle(shuffled)
    after = sides(shuffled, **options)
    assert before.items() <= after.items()


@given(st.text(alphabet="ab é", min_size=1).filter(str.strip), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_same_question_is_on_one_side_however_it_is_written(question, seed):
    written = [question, question.upper(), f"  {question}\n", question.replace(" ", "\t ")]
    assert len(set(sides(as_rows(written), seed=seed, train_fraction=0.5).values())) == 1


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1), st.floats(0.1, 1))
@settings(max_examples=20, deadline=None)
def test_a_larger_share_for_training_only_adds_to_it(seed, one, other):
    small, large = sorted((one, other))
    few, many = (sides(GSM, seed=seed, train_fraction=f) for f in (small, large))
    assert {q for q in few if few[q]} <= {q for q in many if many[q]}


def test_the_split_of_a_seed_is_pinned():
    train = sides(GSM[:12], train_fraction=0.5)
    assert [n for n, row in enumerate(GSM[:12]) if train[row["question"]]] == [1, 2, 5, 8, 10]
    assert sides(GSM[:12], train_fraction=0.5, seed=1) != train


def test_shares_are_close_to_what_was_asked():
    rows = as_rows([f"question {n}" for n in range(2000)])
    count = sum(sides(rows, train_fraction=0.9).values())
    # 2000 draws of 0.9: mean 1800, standard deviation sqrt(2000 * 0.9 * 0.1) = 13.4
    assert abs(count - 1800) < 5 * 13.4
    assert all(sides(rows[:50], train_fraction=1.0).values())


@given(st.integers(1, 70), st.integers(0, 2**32 - 1), st.randoms())
@settings(max_examples=20, deadline=None)
def test_the_draw_is_the_same_whatever_the_order_and_loses_rows_only_to_smaller_ones(
    most, seed, random
):
    shuffled = GSM[:]
    random.shuffle(shuffled)
    drawn = sides(GSM, max_examples=most, seed=seed)
    assert len(drawn) == min(most, len(GSM))
    assert sides(shuffled, max_examples=most, seed=seed) == drawn
    smaller = sides(GSM[:30], max_examples=most, seed=seed)
    assert {q for q in drawn if q in {row["question"] for row in GSM[:30]}} <= smaller.keys()
    assert drawn.items() <= sides(GSM, seed=seed).items()  # and both sides are drawn from alike


def test_a_draw_takes_from_both_sides():
    # Were rank and side one hash, the 30 smallest would all train.
    assert 5 < sum(sides(GSM, train_fraction=0.5, max_examples=30).values()) < 25


def test_rows_of_one_episode_stay_together_on_request():
    rows = [
        {"prompt": f"hour {h} of {e}", "q_action_0": 0, "q_action_1": 1, "episode": e}
        for e in range(30)
        for h in range(5)
    ]
    found = prepare_rows(rows, PrepareRowSettings(train_fraction=0.5, split_by="episode"))
    train, test = ({row["episode"] for row in part} for part in (found.train, found.test))
    assert train and test and not train & test
    assert len(found.train) == 5 * len(train)
    with pytest.raises(DataError, match="rows has no column epsiode"):
        prepare_rows(rows, PrepareRowSettings(split_by="epsiode"))


def test_files_are_written_once_for_each_side_and_load_for_training(tmp_path):
    done = run(lines("a.jsonl", GSM), ask_for_tags=True)
    assert (done.train, done.test) == (Path("out/train.jsonl"), Path("out/test.jsonl"))
    both = questions(done.train), questions(done.test)
    assert sorted(map(len, both)) == sorted((done.report.train, done.report.test))
    assert sorted([*both[0], *both[1]]) == sorted(row["question"] for row in GSM)
    table = load_table([done.train], date="2026-01-01", values=False, columns={"answer": "numeric"})
    assert "<reasoning>" in table.prompts[0] and table.cells(0)["source"] == "a.jsonl"
    memory = prepare_rows(GSM, PrepareRowSettings(ask_for_tags=True), source="a.jsonl")
    assert [json.loads(line) for line in done.train.open()] == memory.train


def test_parquet_holds_the_same_rows_with_types():
    rows = [
        {**GSM[0], "level": 1, "score": 0.5, "hard": True, "mixed": 1, "wide": 1},
        {**GSM[1], "level": None, "score": 2, "hard": False, "mixed": "x", "wide": 2**70},
    ]
    done = run(lines("a.jsonl", rows), out_format="parquet", train_fraction=1.0)
    (frame,) = read_chunks("out/train.parquet")
    found = json.loads(frame.to_json(orient="records"))
    asked = [{"role": "user", "content": GSM[0]["question"]}]
    assert found[0]["prompt"] == asked and done.test is None
    assert [r["level"] for r in found] == [1, None] and [r["score"] for r in found] == [0.5, 2.0]
    assert [r["mixed"] for r in found] == ["1", "x"] and found[1]["wide"] == str(2**70)
    assert str(frame["hard"].dtype) == "bool[pyarrow]"
    assert load_table("out/train.parquet", values=False).prompts[0].count("What is 0") == 1


def test_decisions_keep_their_lists_in_parquet():
    row = {"prompt": "go", "q": [0.5, 1.5], "actions": ["off", "on"]}
    run(lines("a.jsonl", [row]), out_format="parquet", train_fraction=1.0)
    assert json.loads(pd.read_parquet("out/train.parquet")["q"][0]) == [0.5, 1.5]


def test_sources_of_several_shapes_make_one_table(tmp_path):
    (tmp_path / "d").mkdir()
    lines("d/a.jsonl", [{"instruction": "Sing.", "output": "La"}])
    pd.DataFrame(GSM[:3]).to_csv("d/b.csv", index=False)
    Path("d/c.json").write_text(json.dumps([{"question": "q", "answer": "#### 1", "level": 2}]))
    done = run("d", "d/a.jsonl", train_fraction=1.0)
    assert [(s.source, s.format, s.kept) for s in done.report.sources] == [
        ("d/a.jsonl", "alpaca", 1),
        ("d/b.csv", "gsm8k", 3),
        ("d/c.json", "gsm8k", 1),
    ]
    (frame,) = read_chunks("out/train.jsonl")
    assert list(frame.columns) == ["prompt", "answer", "reference", "id", "source", "level"]
    assert list(frame["source"]) == ["a.jsonl", *["b.csv"] * 3, "c.json"]


def test_a_row_is_the_same_row_in_every_kind_of_file():
    rubric = [{"description": "Names it.", "weight": 5}, {"description": "Is short.", "weight": 1}]
    rows = [{"question": f"q{n}", "reference_answer": "a", "rubric": rubric} for n in range(9)]
    frame = pd.DataFrame(rows)
    frame.to_parquet("a.parquet")
    frame.assign(rubric=json.dumps(rubric)).to_csv("a.csv", index=False)
    Path("a.json").write_text(json.dumps(rows))
    lines("a.jsonl", rows)
    found = []
    for kind in ("parquet", "csv", "json", "jsonl"):
        done = run(f"a.{kind}", train_fraction=0.5, overwrite=True)
        found.append([json.loads(line)["id"] for line in done.train.read_text().splitlines()])
    assert found[0] and found == found[:1] * 4


def test_rows_beyond_the_first_chunk_are_read_and_written(monkeypatch):
    for name in ("sources", "prepared_tables"):
        monkeypatch.setattr(f"gptoss_tools.data.{name}.CHUNK_ROWS", 7)
    sparse = [{**row, "late": n} if n > 20 else row for n, row in enumerate(GSM)]
    for kind in ("jsonl", "parquet"):
        done = run(lines("a.jsonl", sparse), out_format=kind, overwrite=True)
        frames = [frame for path in (done.train, done.test) for frame in read_chunks(path)]
        assert sum(map(len, frames)) == 60 and all("late" in frame for frame in frames)
        assert done.report.sources[0].kept == 60


def test_a_dataset_of_the_hub_reads_like_a_file(tmp_path, monkeypatch):
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    lines(folder / "rows.jsonl", GSM)
    readme = "---\nconfigs:\n- config_name: main\n  data_files: rows.jsonl\n---\n"
    (folder / "README.md").write_text(readme)
    # `datasets` reads a folder as it reads a dataset of the Hub; a path that exists is no Hub id.
    monkeypatch.setattr("gptoss_tools.data.sources.is_hub_id", lambda path: path == "owner/name")
    done = run("owner/name", subset="main")
    assert done.report.sources[0].source == "owner/name" and done.report.kept == 60
    assert json.loads(done.train.open().readline())["source"] == "owner/name"
    with pytest.raises(DataError, match=r"owner/name has no subset 'side': \['main'\]") as caught:
        run("owner/name", subset="side", overwrite=True)
    assert "--subset" in caught.value.hint
    with pytest.raises(DataError, match="owner/name has no split 'dev'"):
        run("owner/name", subset="main", split="dev", overwrite=True)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on the loopback that has nothing; the paths it was asked for."""
    asked = []

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_wrong_id_is_asked_of_the_hub_once_with_its_revision_and_said(hub):
    with pytest.raises(MachineError, match="owner/name is no file here and the Hub did not give"):
        run("owner/name", revision="v1.0")
    assert hub == ["/api/datasets/owner/name/revision/v1.0"]


def test_a_hub_id_out_of_reach_and_a_mistyped_file_are_told_apart():
    with pytest.raises(MachineError, match="owner/name is no file here and the Hub did not give"):
        run("owner/name")
    with pytest.raises(DataError, match=r"rows\.jsonl does not exist"):
        run("rows.jsonl")
    assert not Path("out").exists()


BROKEN = [
    GSM[0],
    {"question": "", "answer": "#### 1"},
    {"question": "Where?", "answer": "Here"},
    GSM[0],
    {"question": " ", "answer": "#### 2"},
]


def test_every_row_that_is_left_out_is_counted_with_its_reason_and_the_first_place():
    done = run(lines("a.jsonl", BROKEN), train_fraction=1.0)
    report = json.loads(Path("out/report.json").read_text())
    assert (report["read"], report["train"], report["test"]) == (5, 1, 0)
    assert [(d["reason"], d["rows"], d["first"]) for d in report["dropped"]] == [
        ("no question", 2, "a.jsonl row 2"),
        ("no final answer after ####", 1, "a.jsonl row 3"),
        ("duplicate", 1, "a.jsonl row 4"),
    ]
    assert report["settings"]["seed"] == 42 and done.report.kept == 1


cells = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.one_of(st.text(max_size=3), st.none()), max_size=2),
    st.dictionaries(st.sampled_from(["role", "content", "description", "weight"]), st.text()),
    st.just([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]),
    st.just("#### 4"),
    st.just("1. Is short. [Hard Rule]"),
)
shapes = st.sampled_from(
    [
        ("instruction", "rubric", "winner", "response_a", "response_b"),
        ("question", "reference_answer", "rubric", "rubric_list", "id"),
        ("question", "answer", "source"),
        ("messages", "prompt", "reference"),
        ("prompt", "completion", "rubric"),
        ("instruction", "input", "output", "answer"),
        ("prompt", "answer", "reference", "rubric"),
        ("prompt", "q_action_0", "q_action_1"),
    ]
)


@given(shapes, st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_cells_every_row_is_prepared_or_counted(columns, data):
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, cells)), max_size=6))
    kept = {name: f"{name} {n}" for n, name in enumerate(columns)}
    good = {**kept, "messages": [{"role": "user", "content": "q"}] * 1}
    good |= {"answer": "#### 1", "rubric": "1. Is short.", "winner": "A", "source": "made up"}
    good["messages"] = [*good["messages"], {"role": "assistant", "content": "a"}]
    rows.append({name: good[name] for name in columns})
    found = prepare_rows(rows, PrepareRowSettings(train_fraction=0.5, max_examples=3))
    report = found.report
    dropped = sum(entry.rows for entry in report.dropped.values())
    assert report.read == len(rows) == report.kept + dropped
    assert report.kept == report.train + report.test + report.beyond_max_examples
    assert (len(found.train), len(found.test)) == (report.train, report.test)
    assert 1 <= report.train + report.test == min(3, report.kept)
    json.dumps([found.train, found.test], allow_nan=False)


def test_strict_stops_at_rows_that_would_be_left_out():
    with pytest.raises(DataError, match=r"4 of 5 rows must be left out: 2 no question \(first: a"):
        run(lines("a.jsonl", BROKEN), strict=True)
    assert not Path("out").exists()
    assert run(lines("b.jsonl", GSM), strict=True, max_examples=5).report.beyond_max_examples == 55


def test_a_dataset_of_which_nothing_is_left_is_an_error():
    with pytest.raises(DataError, match="none of 2 rows is left: 2 no question"):
        run(lines("a.jsonl", [BROKEN[1], BROKEN[4]]))
    with pytest.raises(DataError, match=r"a\.jsonl: no rows"):
        run(lines("a.jsonl", []))


def test_a_dry_run_counts_and_writes_nothing():
    done = run(lines("a.jsonl", GSM), dry_run=True)
    assert not done.written and done.report.kept == 60 and not Path("out").exists()


def test_an_existing_folder_is_replaced_only_if_told_and_only_if_it_is_ours():
    first = run(lines("a.jsonl", GSM))
    before = first.train.read_bytes()
    with pytest.raises(RunFolderError, match="out exists"):
        run("a.jsonl")
    run("a.jsonl", overwrite=True)
    assert first.train.read_bytes() == before  # the same bytes, too
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"did not write: notes\.txt"):
        run("a.jsonl", overwrite=True)
    Path("elsewhere").write_text("a file")
    with pytest.raises(RunFolderError, match="elsewhere"):
        prepare(PrepareDataSettings(paths=["a.jsonl"], out="elsewhere", overwrite=True))


def test_a_failure_while_writing_leaves_what_was_there(monkeypatch):
    kept = run(lines("a.jsonl", GSM)).train.read_bytes()

    def fail(self, cells):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.PreparedWriter, "write", fail)
    with pytest.raises(Exception, match="disk"):
        run("a.jsonl", overwrite=True)
    assert Path("out/train.jsonl").read_bytes() == kept
    assert [p.name for p in Path().iterdir() if p.name.startswith(".")] == []


def test_a_broken_line_names_its_file_and_row():
    Path("a.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question"\n')
    with pytest.raises(DataError, match=r"a\.jsonl row 2 is not JSON"):
        run("a.jsonl")
    Path("a.json").write_text(json.dumps([GSM[0], {**GSM[1], "note": "\ud800"}]))
    with pytest.raises(DataError, match=r"a\.json row 2: half of a surrogate pair"):
        run("a.json")
