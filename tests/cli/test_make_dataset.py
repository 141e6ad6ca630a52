"""make-dataset: series as files, rules beside every row, and what the later commands keep."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from gptoss_tools.tes.baselines import BASELINES
from gptoss_tools.tes.dataset import make_series
from gptoss_tools.tes.series import read_all

RULES = [f"baseline_{name}" for name in BASELINES]
SMALL = ("--episodes", "3", "--days", "1", "--seed", "5")


def test_written_series_are_the_generated_ones_and_make_the_same_table(gptoss):
    code, out, err = gptoss("make-dataset", *SMALL, "--write-series", "hours", "--json")
    assert code == 0, err
    assert json.loads(out)["series"] == "hours"
    assert sorted(p.name for p in Path("hours").iterdir()) == [
        "duck-5.csv", "noon-6.csv", "peak-7.csv"
    ]  # fmt: skip
    for read, made in zip(
        read_all(["hours"]), make_series(episodes=3, days=1, seed=5), strict=True
    ):
        assert read.time == made.time
        assert read.load_kw.tolist() == made.load_kw.tolist()
        assert read.carbon.tolist() == made.carbon.tolist()
    code, _, err = gptoss("make-dataset", "--series", "hours", "--seed", "5", "--out", "again.csv")
    assert code == 0, err
    assert Path("again.csv").read_bytes() == Path("data/tes.csv").read_bytes()


def test_existing_series_stay_unless_overwritten(gptoss):
    Path("hours").mkdir()
    own = Path("hours/noon-6.csv")
    own.write_text("mine")
    call = ("make-dataset", *SMALL, "--write-series", "hours")
    for extra in ((), ("--dry-run",)):
        code, out, err = gptoss(*call, *extra)
        assert (code, out) == (2, "")
        assert "noon-6.csv` exists" in err and "--write-series" in err
    assert own.read_text() == "mine"
    assert not Path("data").exists() and len(list(Path("hours").iterdir())) == 1
    assert gptoss(*call, "--overwrite")[0] == 0
    assert own.read_text().startswith("datetime,load_kw,carbon_kg_per_kwh\n")
    assert gptoss(*call, "--overwrite", "--dry-run", "--write-series", "none")[0] == 0
    assert not Path("none").exists()
    code, _, err = gptoss(*call[:-1], "hours/noon-6.csv", "--out", "other.csv")
    assert code == 2 and "no folder to write in" in err


def test_ones_own_series_are_not_written_again(gptoss):
    assert gptoss("make-dataset", *SMALL, "--write-series", "hours")[0] == 0
    call = ("make-dataset", "--series", "hours", "--out", "own.csv")
    code, _, err = gptoss(*call, "--write-series", "copy")
    assert code == 2 and "`series` and `write_series`" in err
    assert not Path("own.csv").exists()
    code, _, err = gptoss(*call, "--series", "nowhere/*.csv")
    assert code == 2 and "nowhere/*.csv: no CSV file" in err and "hint:" in err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rules_stay_beside_their_rows_on_the_way_to_training(gptoss, suffix):
    made = Path(f"data/tes{suffix}")
    assert gptoss("make-dataset", *SMALL, "--out", made)[0] == 0
    assert gptoss("convert-harmony", "data", "--date", "2026-01-01")[0] == 0
    assert gptoss("calc-reward", "data")[0] == 0
    code, out, _ = gptoss("check-data", "data", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}.get(
        suffix, lambda path: pd.read_json(path, lines=True)
    )
    first, last = read(made), read(made.with_stem("tes_harmony_with_reward"))
    assert first[RULES].equals(last[RULES])
    assert list(last.columns)[: len(first.columns)] == list(first.columns)
    # three series, ten hours each on path and six off it
    assert len(last) == 3 * (10 + 6)


def test_a_rule_of_ones_own_is_checked_like_ours(gptoss):
    assert gptoss("make-dataset", *SMALL, "--out", "data/t.csv")[0] == 0
    assert gptoss("convert-harmony", "data", "--date", "2026-01-01")[0] == 0
    assert gptoss("calc-reward", "data")[0] == 0
    [done] = Path("data").glob("*_with_reward.csv")
    frame = pd.read_csv(done)
    frame["baseline_mine"] = [None, 4, *[1] * (len(frame) - 2)]
    frame.to_csv(done, index=False)
    code, out, _ = gptoss("check-data", done, "--json")
    problems = json.loads(out)["problems"]
    assert code == 2 and len(problems) == 1
    assert (problems[0]["row"], problems[0]["column"]) == (2, "baseline_mine")
