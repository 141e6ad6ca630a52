"""Reward columns: the published ones to 1e-12, all files or none, and what tau they suggest."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gptoss_tools.data.score import score
from gptoss_tools.data.table_writer import TableWriter
from gptoss_tools.data.tables import numbers, read_chunks, values
from gptoss_tools.errors import ConfigError, DataError, RunFolderError


def table(name, *rows, extra=None):
    cells = [["" if value != value else str(value) for value in row] for row in rows]
    frame = pd.DataFrame(
        cells, columns=[f"q_action_{a}" for a in range(len(rows[0]))], dtype=object
    )
    frame.insert(0, "prompt", "p")
    with TableWriter(name) as writer:
        writer.write(frame.assign(**(extra or {})))
    return Path(name)


def rewards(path, k=2):
    chunks = list(read_chunks(path))
    return np.concatenate(
        [np.stack([numbers(c, f"reward_action_{a}", "t") for a in range(k)], 1) for c in chunks]
    )


def test_the_published_rewards_are_recomputed_to_1e_12(shared_data, tmp_path):
    for source in sorted((shared_data / "tes" / "q_tables").glob("*.csv")):
        copy = tmp_path / source.name
        copy.write_bytes(source.read_bytes())
        result = score([copy], tau=0.05)
        target = result.files[0].targets[0]
        assert target.name == f"{source.stem}_with_reward.csv"
        np.testing.assert_allclose(rewards(target, 4), rewards(source, 4), rtol=0, atol=1e-12)
        (before,), (after,) = read_chunks(source), read_chunks(target)
        assert list(before.columns) == list(after.columns)
        for name in before.columns[:-4]:
            assert values(before, name) == values(after, name)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rewards_are_added_at_the_end_and_other_cells_stay(suffix):
    table(f"x{suffix}", ("0.50", "0.5"), ("-inf", "7"))
    (file,) = score([f"x{suffix}"]).files
    (frame,) = read_chunks(file.targets[0])
    assert list(frame.columns)[-2:] == ["reward_action_0", "reward_action_1"]
    assert values(frame, "q_action_0") == ["0.50", "-inf"]
    assert rewards(file.targets[0]).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_old_reward_columns_are_replaced_where_they_stand():
    extra = {"reward_action_0": "9", "note": "n", "reward_action_2": "9"}
    table("x.csv", (0, 0), extra=extra)
    target = score(["x.csv"]).files[0].targets[0]
    names = ["prompt", "q_action_0", "q_action_1", "reward_action_0", "note", "reward_action_1"]
    assert target.read_text() == ",".join(names) + "\np,0,0,0.5,n,0.5\n"


def test_overwrite_replaces_the_table_and_a_scored_copy_it_has():
    table("x.csv", (0, 1))
    score(["x.csv"], tau=1.0)
    with pytest.raises(RunFolderError, match=r"x_with_reward\.csv exists") as caught:
        score(["x.csv"])
    assert "--overwrite" in caught.value.hint
    (file,) = score(["x.csv"], tau=0.5, overwrite=True).files
    assert [t.name for t in file.targets] == ["x.csv", "x_with_reward.csv"]
    # exp(1 / 0.5) / (1 + exp(1 / 0.5)) = 1 / (1 + e^-2)
    for name in ("x.csv", "x_with_reward.csv"):
        assert rewards(name)[0, 1] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-14)
    assert sorted(os.listdir()) == ["x.csv", "x_with_reward.csv"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 1), (0, math.nan)], r"b\.csv row 2, column q_action_1 is missing"),
        ([(0, 1), (math.inf, 0)], r"b\.csv row 2, column q_action_0 is \+inf"),
        ([(0, 1), ("x", 0)], r"b\.csv row 2, column q_action_0: 'x' is not a number"),
        ([(-math.inf, -math.inf)], r"b\.csv row 1, column q_action_0 and all other"),
        ([(0,)], r"b\.csv: q_action_0 is the only action"),
    ],
)
def test_one_bad_value_names_its_place_and_nothing_is_written(rows, message):
    table("a.csv", (0, 1))
    table("b.csv", *rows)
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    for overwrite in (False, True):
        with pytest.raises(DataError, match=message):
            score(["a.csv", "b.csv"], overwrite=overwrite)
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_a_table_without_values_says_what_it_has():
    Path("x.csv").write_text("prompt,value\np,1\n")
    with pytest.raises(DataError, match=r"x\.csv has no q_action columns") as caught:
        score(["x.csv"])
    assert "prompt, value" in caught.value.hint


def test_unknown_values_are_masked_or_their_rows_dropped():
    table("x.csv", (0, math.nan, 0), (0, 0, 0))
    (masked,) = score(["x.csv"], missing="mask").files
    assert (masked.rows, masked.dropped, masked.masked) == (2, 0, 1)
    assert masked.targets[0].read_text().splitlines()[1] == "p,0,,0,0.5,,0.5"
    (dropped,) = score(["x.csv"], missing="drop", overwrite=True).files
    assert (dropped.rows, dropped.dropped, dropped.masked) == (1, 1, 0)
    assert rewards("x.csv", 3).tolist() == [[1 / 3] * 3]


def test_masked_rewards_are_null_in_jsonl_and_parquet():
    for suffix in (".jsonl", ".parquet"):
        table(f"x{suffix}", (0, 1, math.nan))
        target = score([f"x{suffix}"], missing="mask").files[0].targets[0]
        (frame,) = read_chunks(target)
        assert values(frame, "reward_action_2") == [None]
        if suffix == ".jsonl":
            json.loads(target.read_text(), parse_constant=pytest.fail)


def test_rows_may_have_fewer_actions():
    table("x.csv", (0, 0, math.nan), (0, 0, 0), extra={"n_actions": ["2", "3"]})
    result = score(["x.csv"])
    np.testing.assert_array_equal(
        rewards(result.files[0].targets[0], 3), [[0.5, 0.5, math.nan], [1 / 3] * 3]
    )
    assert result.stats.actions == (2, 3)
    assert result.files[0].masked == 0


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_of_values_get_lists_of_rewards(suffix):
    frame = pd.DataFrame({"q": [[0.0, 0.0, 0.0], [0.0, 0.0], [0.0, None]], "rewards": "old"})
    with TableWriter(f"x{suffix}") as writer:
        writer.write(frame.assign(reward_action_0="old"))
    (file,) = score([f"x{suffix}"], missing="mask").files
    (found,) = read_chunks(file.targets[0])
    assert list(found.columns) == ["q", "rewards"]
    lists = [json.loads(v) if isinstance(v, str) else v for v in values(found, "rewards")]
    assert lists == [[1 / 3] * 3, [0.5, 0.5], [1.0, None]]
    assert (file.rows, file.masked) == (3, 1)
    with pytest.raises(DataError, match=rf"x\{suffix} row 3, column q\[1\] is missing"):
        score([f"x{suffix}"], overwrite=True)


def test_a_row_has_as_many_rewards_as_it_names_actions():
    table("x.csv", (0, 0, math.nan), (0, 0, 0), extra={"actions": ["on|off", "a|b|c"]})
    target = score(["x.csv"]).files[0].targets[0]
    np.testing.assert_array_equal(rewards(target, 3), [[0.5, 0.5, math.nan], [1 / 3] * 3])
    table("x.csv", (0, 0, 1), extra={"actions": ["on|off"]})
    message = r"x\.csv row 1, column q_action_2: a value, but the row names only 2 actions"
    with pytest.raises(DataError, match=message):
        score(["x.csv"], overwrite=True)


def test_the_share_of_rows_with_losses_beyond_twenty_tau_is_told():
    # ranges of 1, 3 and 30 with tau 1: one of three is above 20
    assert score([table("x.csv", (0, 1), (0, 3), (0, 30))], tau=1.0).stats.saturated == 1 / 3


def test_statistics_by_hand():
    # Gaps 1, 3, 0 and ranges 2, 3, 0; the last row is tied, the fourth has one feasible action.
    rows = [(0, 1, 2), (0, 0, 3), (5, 5, 5), (1, -math.inf, -math.inf)]
    stats = score([table("x.csv", *rows)], tau=1.0).stats
    assert stats.rows == 4
    assert stats.actions == (3, 3)
    assert stats.gap == pytest.approx((0.2, 1.0, 2.6))  # quantiles of 0, 1, 3
    assert stats.range == pytest.approx((0.4, 2.0, 2.8))  # quantiles of 0, 2, 3
    assert (stats.tied, stats.single) == (1, 1)
    assert stats.suggested_tau == 2.0  # median of the gaps above 0: 1 and 3
    assert stats.saturated == 0  # ranges of at most 3 tau
    # Best minus mean: e^2/(1+e+e^2) - 1/3 = 0.33, and only the tied row is below 0.1.
    assert stats.flat_share == 1 / 4


def test_four_actions_are_flat_below_a_best_probability_of_0_35():
    def best(p):  # logits that give probabilities p and (1 - p) / 3 at tau 1
        return (math.log(p), *[math.log((1 - p) / 3)] * 3)

    table("x.csv", best(0.349), best(0.351))
    assert score(["x.csv"], tau=1.0).stats.flat_share == 0.5


@pytest.mark.filterwarnings("error")
def test_values_too_far_apart_for_a_float_are_scored_without_a_warning():
    table("x.csv", (1e308, -1e308), (0, 1))
    result = score(["x.csv"])
    # gaps 1 and (capped) 1.8e308: the 0.9 quantile lies nine tenths of the way
    assert result.stats.gap[2] == pytest.approx(0.9 * 1.7976931348623157e308)
    assert rewards("x_with_reward.csv")[0].tolist() == [1.0, 0.0]


def test_a_dry_run_reads_everything_and_writes_nothing():
    table("x.csv", (0, 1))
    assert score(["x.csv"], dry_run=True).files[0].rows == 1
    assert os.listdir() == ["x.csv"]


def test_wrong_settings_are_refused_before_any_file_is_read():
    for options in ({"tau": 0.0}, {"method": "softmax"}, {"missing": "zero"}):
        with pytest.raises(ConfigError):
            score(["nowhere.csv"], **options)
