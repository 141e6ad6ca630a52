"""Which tables each command takes from files, folders and globs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_tools.data.stages import expand, stage_of
from gptoss_tools.errors import ConfigError, DataError

STEMS = ["x", "x_harmony", "x_with_reward", "x_harmony_with_reward", "x_with_reward_harmony"]


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")


def taken(stage, paths="d", **options):
    return [p.as_posix() for p in expand(paths, stage=stage, **options)]


def test_a_folder_gives_each_family_once_at_the_stage_wanted():
    touch("d/x.csv", "d/x_harmony.csv", "d/x_harmony_with_reward.csv", "d/sub/y.jsonl")
    assert taken("convert") == ["d/sub/y.jsonl", "d/x.csv"]
    assert taken("score") == ["d/sub/y.jsonl", "d/x_harmony.csv"]
    assert taken("train") == ["d/sub/y.jsonl", "d/x_harmony_with_reward.csv"]
    assert taken("check") == taken("train")


def test_rewards_may_come_before_the_conversion():
    touch("d/x.csv", "d/x_with_reward.csv")
    assert taken("convert") == ["d/x_with_reward.csv"]
    assert taken("score") == ["d/x.csv"]
    touch("d/x_with_reward_harmony.csv")
    assert taken("train") == ["d/x_with_reward_harmony.csv"]


def test_harmony_without_rewards_goes_before_rewards_without_harmony():
    touch("d/x_harmony.csv", "d/x_with_reward.csv")
    assert taken("train") == ["d/x_harmony.csv"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(STEMS), min_size=1), st.sampled_from(["train", "score", "convert"]))
def test_no_family_is_ever_taken_twice(tmp_path, stems, stage):
    folder = tmp_path / "-".join(sorted(stems))
    touch(*(folder / f"{stem}.csv" for stem in stems))
    try:
        assert len(taken(stage, folder)) == 1
    except DataError:
        assert all(("_with_reward" if stage == "score" else "_harmony") in stem for stem in stems)


def test_tables_of_other_folders_kinds_and_names_are_families_of_their_own():
    touch("d/x.csv", "d/x_harmony.jsonl", "d/e/x_harmony.csv", "d/xx_harmony.csv")
    assert len(taken("train")) == 4


def test_named_files_are_taken_as_given_and_once():
    touch("d/x.csv", "d/x_harmony_with_reward.csv")
    names = ["d/x_harmony_with_reward.csv", "d/x.csv", "d/../d/x.csv"]
    assert taken("score", names) == names[:2]


def test_globs_are_searched_like_folders():
    touch("d/x.csv", "d/x_harmony.csv", "d/notes.txt")
    assert taken("train", "d/*") == ["d/x_harmony.csv"]
    assert taken("convert", ["d/x*.csv"]) == ["d/x.csv"]
    touch("d/e/y.csv")
    assert taken("train", "d/**/*.csv") == ["d/e/y.csv", "d/x_harmony.csv"]


def test_hidden_and_half_written_files_are_left_alone():
    touch("d/x.csv", "d/.tmp-1-x.csv", "d/.cache/y.csv")
    assert taken("train") == ["d/x.csv"]


def test_another_suffix_makes_other_families():
    touch("d/x.csv", "d/x_h.csv")
    assert taken("convert", suffix="_h") == ["d/x.csv"]
    assert stage_of(Path("d/x_h_with_reward.csv"), "_h") == ("x", True, True)


@pytest.mark.parametrize(
    ("paths", "stage", "message", "hint"),
    [
        ("d/tabel.csv", "train", "d/tabel.csv does not exist", "did you mean d/table_harmony.csv"),
        ("d/notes.txt", "train", "is not a table", ".csv"),
        ("empty", "train", "holds no table", ".csv"),
        ("d/*.parquet", "train", "no table matches", None),
        ("d", "convert", "every table in it is converted already", None),
        ([], "train", "no table was named", None),
        ([""], "train", "a path is empty", None),
        ("d/gone.csv", "train", "d/gone.csv is a link that leads nowhere", "ls -l"),
        ("d/pipe.csv", "train", "d/pipe.csv is neither a file nor a folder", None),
    ],
)
def test_paths_that_lead_nowhere_are_errors(paths, stage, message, hint):
    touch("d/table_harmony.csv", "d/notes.txt", "empty/x.txt")
    Path("d/gone.csv").symlink_to("nowhere.csv")
    os.mkfifo("d/pipe.csv")
    with pytest.raises(DataError, match=message.replace("*", r"\*")) as caught:
        expand(paths, stage=stage)
    assert (hint or "") in (caught.value.hint or "")


def test_shards_share_the_tables_out():
    touch(*(f"d/{name}.csv" for name in "abcde"))
    assert taken("train", shard="1/2") == ["d/a.csv", "d/c.csv", "d/e.csv"]
    assert taken("train", shard="2/2") == ["d/b.csv", "d/d.csv"]
    assert taken("train", shard="1/1") == taken("train")
    with pytest.raises(DataError, match="shard 6/6 is empty: there are 5 tables") as caught:
        taken("train", shard="6/6")
    assert "fewer shards" in (caught.value.hint or "")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "", "-1/2", "\u0661/2"])
def test_a_shard_that_is_no_part_is_refused(shard):
    touch("d/a.csv")
    with pytest.raises(ConfigError, match="is no part of a whole"):
        taken("train", shard=shard)
