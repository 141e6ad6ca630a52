"""Tables go in and come out unchanged, in chunks; broken files say where they are broken."""

from __future__ import annotations

import csv
import io
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_tools.data.table_writer import TableWriter
from gptoss_tools.data.tables import numbers, read_chunks, values
from gptoss_tools.errors import ConfigError, DataError, GptossError, RunFolderError

CELL = st.text(
    st.one_of(
        st.sampled_from('",;\r\n \t\x00\ufeff'),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=6,
)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=7)
NEAR = st.integers(-30, 5)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, frames):
    with TableWriter(path) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def read(path, **options):
    rows = []
    for chunk in read_chunks(path, **options):
        rows += zip(*(values(chunk, name) for name in chunk), strict=True)
    return rows


@relaxed
@given(ROWS, st.sampled_from([".csv", ".jsonl", ".parquet"]), st.integers(1, 4))
def test_text_of_any_kind_comes_back_unchanged(tmp_path, rows, suffix, chunk_rows):
    frame = pd.DataFrame(rows, columns=["prompt", "b", "c,d"], dtype=object)
    path = write(tmp_path / f"x{suffix}", [frame.iloc[:3], frame.iloc[3:]])
    assert read(path, chunk_rows=chunk_rows) == rows


@relaxed
@given(ROWS)
def test_csv_is_read_and_written_as_pythons_csv_module_does(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"], dtype=object)
    path = write(tmp_path / "ours.csv", [frame])
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], *map(list, rows)]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    (tmp_path / "theirs.csv").write_bytes(text.getvalue().encode())
    assert read(tmp_path / "theirs.csv") == rows


@relaxed
@given(
    st.lists(st.floats(allow_nan=False), min_size=1),
    st.sampled_from([".csv", ".jsonl", ".parquet"]),
)
def test_numbers_come_back_to_the_last_bit(tmp_path, found, suffix):
    frame = pd.DataFrame({"x": found, "y": [math.nan] * len(found)})
    path = write(tmp_path / f"x{suffix}", [frame])
    (chunk,) = read_chunks(path)
    np.testing.assert_array_equal(numbers(chunk, "x", "t"), found)
    assert np.signbit(numbers(chunk, "x", "t")).tolist() == [math.copysign(1, v) < 0 for v in found]
    assert np.isnan(numbers(chunk, "y", "t")).all()


@relaxed
@given(st.lists(st.text("0123456789.eE+- ", min_size=1, max_size=8), min_size=1, max_size=4))
def test_csv_numbers_mean_what_pythons_float_says(tmp_path, cells):
    chunk = pd.DataFrame({"x": pd.array(cells, dtype="string[pyarrow]")})
    try:
        expected = [float(c) if c.strip() else math.nan for c in cells]
    except ValueError:
        with pytest.raises(DataError, match=r"t row \d+, column x: '.*' is not a number"):
            numbers(chunk, "x", "t")
    else:
        np.testing.assert_array_equal(numbers(chunk, "x", "t"), expected)


def test_words_for_nothing_are_no_value():
    cells = ["", "NA", "nan", "null", " ", "1"]
    chunk = pd.DataFrame({"x": pd.array(cells, dtype="string[pyarrow]")})
    assert np.isnan(numbers(chunk, "x", "t")).tolist() == [True] * 5 + [False]


def test_csv_is_written_plainly():
    # Cells are quoted only where they must be, floats in their shortest form.
    frame = pd.DataFrame({"a": ["x", 'say "hi"', "1,2"], "b": [0.1, 1e-5, math.nan]})
    path = write("x.csv", [frame])
    with open(path, "rb") as file:
        assert file.read() == b'a,b\nx,0.1\n"say ""hi""",1e-05\n"1,2",\n'


@relaxed
@given(ROWS)
def test_only_cells_that_need_quotes_have_them(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"], dtype=object)

    def cell(text):
        needs = any(mark in text for mark in '",\r\n')
        return '"' + text.replace('"', '""') + '"' if needs else text

    lines = ["a,b,c", *(",".join(map(cell, row)) for row in rows)]
    assert write(tmp_path / "x.csv", [frame]).read_bytes().decode() == "".join(
        f"{line}\n" for line in lines
    )


@relaxed
@given(
    st.lists(
        st.one_of(
            st.floats(allow_nan=False),
            st.integers(-(2**70), 2**70).map(float),
            # a whole number of any digits, at every place of the point
            st.builds(lambda m, e: float(f"{m}e{e}"), st.integers(-(10**17), 10**17), NEAR),
        ),
        min_size=1,
    )
)
def test_floats_are_written_as_python_writes_them(tmp_path, found):
    path = write(tmp_path / "x.csv", [pd.DataFrame({"x": found, "y": found})])
    assert path.read_text().split()[1:] == [f"{x!r},{x!r}" for x in found]


def test_jsonl_values_keep_their_types(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"a": 1, "b": [{"role": "user"}]}\n\n{"a": null, "c": "é"}\n'
    )
    (chunk,) = read_chunks(tmp_path / "x.jsonl")
    path = write(tmp_path / "y.jsonl", [chunk])
    assert path.read_text() == (
        '{"a": 1, "b": [{"role": "user"}], "c": null}\n{"a": null, "b": null, "c": "é"}\n'
    )


@pytest.mark.parametrize(
    ("raw", "options", "message", "hint"),
    [
        (b"a;b\n1;2\n", {}, "single column named 'a;b'", '--delimiter ";"'),
        (b"a\tb\n1\t2\n", {}, "single column", "--delimiter $'"),
        ("a,b\n1,2\n1,温度\n".encode("cp932"), {}, "row 2 is not utf-8 text", "--encoding cp932"),
        ("温度,b\n1,2\n".encode("cp932"), {}, "header is not utf-8 text", "--encoding cp932"),
        (b"a,b\n1,2\n1,2,3\n", {}, "row 2 has 3 cells where the header has 2", "quotes"),
        (b"a,b\n1,2\n1\n", {}, "row 2 has 1 cells where the header has 2", "quotes"),
        (b'a,b\n1,2\n1,"2\n3,4\n', {}, "row 2 opens a quote that is never closed", None),
        (b"a,a\n1,2\n", {}, "the column 'a' more than once", None),
        (b"", {}, "is empty", None),
        (b"a,b\n1,2\n", {"encoding": "utf-16"}, "is not utf-16 text", "--encoding"),
    ],
)
def test_a_broken_csv_names_its_row_and_the_way_out(tmp_path, raw, options, message, hint):
    (tmp_path / "x.csv").write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        list(read_chunks(tmp_path / "x.csv", **options))
    assert str(tmp_path / "x.csv") in str(caught.value)
    assert (hint or "") in (caught.value.hint or "")


@pytest.mark.parametrize("encoding", ["cp932", "utf-16", "utf-8", "utf-8-sig"])
def test_other_encodings_separators_and_byte_order_marks_are_read(tmp_path, encoding):
    (tmp_path / "x.csv").write_bytes("温度;b\r\n1;夏\r\n".encode(encoding))
    (chunk,) = read_chunks(tmp_path / "x.csv", encoding=encoding, delimiter=";")
    assert list(chunk.columns) == ["温度", "b"]
    assert values(chunk, "b") == ["夏"]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a"\n', "row 2 is not JSON"),
        ("x.jsonl", b"[1]\n", "row 1 is not a JSON object"),
        ("x.jsonl", b'["\\ud800"]\n', "row 1 is not a JSON object"),
        ("x.jsonl", b'{"a": "\xff"}\n', "row 1 is not utf-8 text"),
        ("x.jsonl", b'{"a": ' + b"[" * 100_000, "row 1 is not JSON"),
        ("x.jsonl", b'{"a": "\\ud83d\\ude00"}\n{"a": "\\ude00"}\n', "row 2, column a: half of a"),
        ("x.parquet", b"PAR1", "cannot be read as Parquet"),
        ("x.xlsx", b"", "is not a table"),
    ],
)
def test_other_broken_files_say_so(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        list(read_chunks(tmp_path / name))


def test_numbers_of_json_are_read_as_python_reads_them():
    cells = [1, 2**60 + 1, 0.5, None, math.nan]
    found = numbers(pd.DataFrame({"q": pd.Series(cells, dtype=object)}), "q", "x")
    np.testing.assert_array_equal(found, [1.0, float(2**60 + 1), 0.5, math.nan, math.nan])


def test_cells_that_are_no_numbers_are_named_and_shortened():
    for cells, shown in (
        (pd.array(pd.to_datetime(["2020-01-01"]), pd.ArrowDtype(pa.timestamp("us"))), "datetime"),
        ([10**400], r"10{56}\.\.\."),  # 57 of the 401 digits
    ):
        with pytest.raises(DataError, match=f"x row 1, column q: {shown}.* is not a number"):
            numbers(pd.DataFrame({"q": cells}), "q", "x")


def test_a_row_larger_than_a_block_is_read_in_its_place(tmp_path):
    rows = [("0", "a")] * 1_200_000 + [("1", "a"), ("2", "x,\n" * 2_000_000), ("3", "b")]
    frame = pd.DataFrame(rows, columns=["n", "text"], dtype=object)
    path = write(tmp_path / "x.csv", [frame])  # blocks of 4 MB, and a row of 6
    found = read(path)
    assert len(found) == len(rows)
    assert found[-4:] == rows[-4:]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_chunk_of_large_rows_is_small(tmp_path, suffix):
    # 40 rows of 2 MB: no chunk has much more than 32 MB of them
    rows = [f"{number}" + "x" * 2_000_000 for number in range(40)]
    path = write(tmp_path / f"x{suffix}", [pd.DataFrame({"prompt": rows}, dtype=object)])
    chunks = [values(chunk, "prompt") for chunk in read_chunks(path)]
    assert max(map(len, chunks)) <= 17
    assert [cell for chunk in chunks for cell in chunk] == rows


def test_an_unknown_encoding_is_a_wrong_setting(tmp_path):
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(ConfigError, match="encoding 'utf-9' is unknown"):
        list(read_chunks(tmp_path / "x.csv", encoding="utf-9"))


def test_a_table_without_rows_still_has_its_columns(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n")
    (chunk,) = read_chunks(tmp_path / "x.csv")
    assert list(chunk.columns) == ["a", "b"] and not len(chunk)


def test_a_failure_leaves_the_old_table_and_nothing_else(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(KeyError), TableWriter(path) as writer:
        writer.write(pd.DataFrame({"a": ["new"]}))
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.csv"]


def test_a_link_and_the_files_mode_are_kept(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o640)
    (tmp_path / "link.csv").symlink_to("real.csv")
    write(tmp_path / "link.csv", [pd.DataFrame({"a": ["new"]})])
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "a\nnew\n"
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o640


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(RunFolderError, match="cannot be written"):
        TableWriter(tmp_path / "file" / "x.csv")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    for written in ("a", "a" * 100_000):  # fails when the file is closed, and when it is written
        writer = TableWriter(tmp_path / "x.csv")
        writer._file.close()
        writer._file = open("/dev/full", "wb")  # noqa: SIM115
        with pytest.raises(GptossError, match="cannot be written: No space left") as full, writer:
            writer.write(pd.DataFrame({"a": [written]}))
        assert full.value.exit_code == 1
        assert os.listdir(tmp_path) == []


def test_the_folder_of_a_new_table_is_made(tmp_path):
    write(tmp_path / "new" / "x.csv", [pd.DataFrame({"a": ["1"]})])
    assert (tmp_path / "new" / "x.csv").read_text() == "a\n1\n"


def test_old_leftovers_of_killed_writers_go_and_fresh_or_living_ones_stay(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {
        "dead and old": f".tmp-{gone.pid}-x.csv",
        "dead and fresh": f".tmp-{gone.pid}-x.csv.gz",
        "living": f".tmp-{os.getppid()}-x.csv",
        "another table's": f".tmp-{gone.pid}-y.csv",
    }
    for name in names.values():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    fresh = tmp_path / f".tmp-{gone.pid}-z.csv"
    fresh.touch()
    TableWriter(tmp_path / "x.csv").abort()
    TableWriter(tmp_path / "z.csv").abort()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names.values(), fresh.name} - {names["dead and old"]}
