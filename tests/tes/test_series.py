"""Generated series keep their promises; a user's CSV is read or refused in one sentence."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.series import (
    PROFILES,
    Series,
    generate,
    read_all,
    read_series,
    write_series,
)

ROWS = [(f"2025-07-01 {h:02d}:00:00", f"{0.3 + h / 100:.2f}", f"{h}.5") for h in range(24)]


def write(path, rows=ROWS, header=("datetime", "carbon", "load"), encoding="utf-8"):
    text = "\n".join([",".join(header), *(",".join(r) for r in rows)])
    path.write_text(text + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize("profile", PROFILES)
def test_a_generated_series_has_one_day_more_and_loads_in_decision_hours_only(profile):
    series = generate(profile, 3, 5)
    assert len(series) == 96
    working = Plant().decides(series.hours)
    assert (series.load_kw[~working] == 0).all()
    assert (series.load_kw[working] > 0).all()
    assert ((series.carbon >= 0.03) & (series.carbon < 1)).all()


def test_the_seed_and_the_profile_decide_the_series():
    one, again, other = (generate("duck", 2, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.carbon, again.carbon)
    assert np.array_equal(one.load_kw, again.load_kw)
    assert not np.array_equal(one.carbon, other.carbon)
    assert not np.array_equal(one.load_kw, generate("noon", 2, 1).load_kw)


def test_duck_is_clean_at_midday_and_peak_is_dirty_in_the_afternoon():
    def hour_mean(profile, hour):
        return np.mean([generate(profile, 1, s).carbon[hour] for s in range(20)])

    assert hour_mean("duck", 12) < 0.6 * hour_mean("duck", 3)
    assert hour_mean("duck", 19) > hour_mean("duck", 3)
    assert hour_mean("peak", 16) > 1.2 * hour_mean("peak", 9)
    assert hour_mean("noon", 12) < hour_mean("noon", 3)


def test_an_unknown_profile_or_no_day_is_refused():
    with pytest.raises(ConfigError, match="duck, noon, peak"):
        generate("goose", 3, 0)
    with pytest.raises(ConfigError, match="days"):
        generate("duck", 0, 0)


def test_a_japanese_csv_is_read_without_naming_columns(tmp_path):
    header = ("日時", "CO2排出係数[kg-CO2/kWh]", "冷房需要[kW]")
    for encoding in ("utf-8", "utf-8-sig"):
        series = read_series(write(tmp_path / "jp.csv", header=header, encoding=encoding))
        assert series.carbon[3] == 0.33
        assert series.load_kw[3] == 3.5
        assert series.time[3].hour == 3
    path = write(tmp_path / "sjis.csv", header=header, encoding="cp932")
    assert len(read_series(path, encoding="cp932")) == 24
    with pytest.raises(DataError, match=r"sjis\.csv.*utf-8"):
        read_series(path)


def test_named_columns_win_and_missing_ones_list_what_there_is(tmp_path):
    path = write(tmp_path / "x.csv", header=("a", "b", "c"))
    series = read_series(path, time_column="a", load_column="c", carbon_column="b")
    assert series.load_kw[0] == 0.5
    with pytest.raises(DataError, match="no column 'z'") as error:
        read_series(path, time_column="z", load_column="c", carbon_column="b")
    assert "a, b, c" in error.value.hint
    with pytest.raises(DataError, match="no column looks like the time") as error:
        read_series(path)
    assert "a, b, c" in error.value.hint
    with pytest.raises(DataError, match="two roles"):
        read_series(path, time_column="a", load_column="c", carbon_column="c")


def test_two_candidates_are_ambiguous_until_one_is_named(tmp_path):
    rows = [(*row, "1.0") for row in ROWS]
    header = ("datetime", "co2", "cooling load", "other load")
    path = write(tmp_path / "two.csv", rows, header)
    with pytest.raises(DataError, match="2 columns could be the load"):
        read_series(path)
    assert read_series(path, load_column="other load").load_kw[0] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:5] + rows[6:], "row 6, .*is not one hour after row 5"),
        (lambda rows: rows[:5] + rows[4:], "row 6, .*repeats row 5"),
        (lambda rows: [*rows[:5], (rows[5][0], "", "1")], "row 6, column 'carbon': '' is not"),
        (lambda rows: [*rows[:5], (rows[5][0], "1", "nan")], "row 6, column 'load': 'nan'"),
        (lambda rows: [*rows[:5], (rows[5][0], "1", "-2")], "row 6, column 'load': a load below"),
        (lambda rows: [("soon", "1", "1")], "row 1, column 'datetime': no time in 'soon'"),
        (lambda rows: [], "no rows"),
    ],
)
def test_a_hole_in_a_csv_names_its_row(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_series(write(tmp_path / "hole.csv", change(ROWS)))


def test_no_file_and_no_such_encoding_are_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_series(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="klingon"):
        read_series(write(tmp_path / "x.csv"), encoding="klingon")


def same(one, other):
    return (
        one.name == other.name
        and one.time == other.time
        and np.array_equal(one.load_kw, other.load_kw)
        and np.array_equal(one.carbon, other.carbon)
    )


@given(
    hours=st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e3, 1e3)), min_size=1, max_size=6),
    start=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),
)
def test_what_is_written_reads_back_to_the_last_bit(tmp_path_factory, hours, start):
    time = tuple(start + timedelta(hours=i) for i in range(len(hours)))
    load, carbon = (np.array(column) for column in zip(*hours, strict=True))
    path = tmp_path_factory.mktemp("series") / "any.csv"
    write_series(Series(time, load, carbon, "any"), path)
    assert same(read_series(path), Series(time, load, carbon, "any"))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_generated_series_is_the_same_from_its_file(tmp_path, profile):
    series = generate(profile, 2, 12)
    write_series(series, tmp_path / f"{series.name}.csv")
    assert same(read_series(tmp_path / f"{series.name}.csv"), series)
    assert [path.name for path in tmp_path.iterdir()] == [f"{series.name}.csv"]


def test_files_folders_and_globs_are_read_once_each_in_order(tmp_path):
    for name in ("b", "a", "deep/c", ".git/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.csv")
    (tmp_path / ".tmp-1-d.csv").write_text("half")
    (tmp_path / "notes.txt").write_text("no series")

    def names(*paths):
        return [series.name for series in read_all([tmp_path / path for path in paths])]

    assert names("") == ["a", "b", "c"]
    assert names("b.csv", "") == ["b", "a", "c"]
    assert names("*.csv") == ["a", "b"]
    assert names("**/*.csv", "deep") == ["a", "b", "c"]
    header = ("when", "grid", "need")
    write(tmp_path / "named.csv", header=header, encoding="cp932")
    [series] = read_all([tmp_path / "named.csv"], "when", "need", "grid", "cp932")
    assert series.load_kw[3] == 3.5


def test_paths_without_series_and_two_series_of_one_name_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("empty", "empty/*.csv"):
        with pytest.raises(DataError, match="no CSV file with hourly series") as error:
            read_all([tmp_path / path])
        assert "--write-series" in error.value.hint
    with pytest.raises(DataError, match=r"none\.csv: there is no such file"):
        read_all([tmp_path / "none.csv"])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "june.csv")
    with pytest.raises(DataError, match=r"one/june\.csv and .*two/june\.csv: .*named 'june'"):
        read_all([tmp_path / "one", tmp_path / "two" / "june.csv"])


def test_text_in_a_number_names_file_row_and_column(tmp_path):
    rows = [*ROWS[:5], (ROWS[5][0], "about 0.3", "5.5"), *ROWS[6:]]
    with pytest.raises(DataError) as error:
        read_all([write(tmp_path / "text.csv", rows)])
    assert str(error.value) == (
        f"{tmp_path / 'text.csv'}: row 6, column 'carbon': 'about 0.3' is not a number"
    )
