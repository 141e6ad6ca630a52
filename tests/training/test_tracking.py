import csv
import json
import logging
import math
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.core.history import read_metrics
from gptoss_tools.errors import RunFolderError
from gptoss_tools.training.logs import log_file
from gptoss_tools.training.tracking import (
    COLUMNS,
    SEED_COLUMNS,
    CompletionLog,
    Metrics,
)


def state(step, max_steps=10):
    return SimpleNamespace(global_step=step, max_steps=max_steps, num_input_tokens_seen=0)


def clock(*times):
    moments = iter(times)
    return lambda: next(moments)


def row(**more):
    return {
        "step": 1,
        "micro_step": 2,
        "prompt": "p",
        "completion": "c",
        "action": 0,
        "reward": 0.5,
        "target_action": 1,
        "reason": "ok",
        "row": 7,
        **more,
    }


def test_a_record_is_flat_valid_json_with_rates_by_hand(tmp_path):
    seen = []
    moments = clock(100.0, 100.0, 104.0)  # made, begun, first record
    metrics = Metrics(tmp_path / "m.jsonl", 1, seen.append, clock=moments)
    metrics.on_train_begin(None, state(0), None)
    logs = {
        "loss": 0.25,
        "reward": math.nan,
        "completions/mean_length": 9.0,
        "num_tokens": 80,
        "invalid/share": 0.5,
    }
    metrics.on_log(None, state(2), None, logs=logs)
    record = json.loads((tmp_path / "m.jsonl").read_text())
    assert record["step"] == 2 and record["segment"] == 1
    assert record["reward"] is None and record["completions_mean_length"] == 9.0
    assert record["tokens_per_second"] == 80 / 4 and record["seconds"] == 4.0
    # 2 steps took 4 s, 8 are left: 16 s
    assert seen[0].eta == 16.0 and seen[0].invalid == 0.5 and seen[0].reward is None


def test_the_summary_after_training_is_no_step(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl", 1)
    metrics.on_log(None, state(10), None, logs={"train_runtime": 3.0, "train_loss": 0.1})
    assert not (tmp_path / "m.jsonl").exists()


def test_steps_done_again_supersede_the_lost_ones(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (4, 3)]
    path.write_text(
        "".join(json.dumps({"step": s, "segment": g}) + "\n" for s, g in lines[:4])
        + '{"step": 5, "seg'
    )
    metrics = Metrics(path, 2)
    metrics.on_train_begin(None, state(2), None)
    for step, segment in lines[4:]:
        metrics.segment = segment
        metrics.on_log(None, state(step), None, logs={"loss": 0.0})
    kept = [(r["step"], r["segment"]) for r in read_metrics(path)]
    assert kept == [(1, 1), (2, 1), (3, 2), (4, 3)]
    assert path.read_text().count("\n") == 8  # nothing was taken away
    assert read_metrics(tmp_path / "none.jsonl") == []


@given(segments=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=6))
def test_what_is_read_is_always_one_rising_history(tmp_path_factory, segments):
    path = tmp_path_factory.mktemp("metrics") / "m.jsonl"
    reached = 0
    for number, (back, length) in enumerate(segments, 1):
        first = max(0, reached - back)
        reached = first + length
        with path.open("a") as file:
            for step in range(first + 1, reached + 1):
                file.write(json.dumps({"step": step, "segment": number}) + "\n")
    records = read_metrics(path)
    assert [r["step"] for r in records] == list(range(1, reached + 1))
    assert [r["segment"] for r in records] == sorted(r["segment"] for r in records)


def test_the_seeds_columns_come_first_and_the_header_once(tmp_path):
    path = tmp_path / "deep" / "c.csv"
    CompletionLog(path, 1)([row(), row(reward=None, action=None, reason="truncated")])
    CompletionLog(path, 2)([row(prompt='says "no",\nthen 終わり')])
    table = pd.read_csv(path)
    assert tuple(table.columns[:7]) == SEED_COLUMNS and tuple(table.columns) == COLUMNS
    assert table["segment"].tolist() == [1, 1, 2]
    assert pd.isna(table["reward"][1]) and pd.isna(table["action"][1])
    assert table["prompt"][2] == 'says "no",\nthen 終わり'


@given(text=st.text(alphabet='ab",\n\r', max_size=20), cut=st.integers(1, 60))
def test_a_row_that_a_kill_cut_off_never_swallows_the_next(tmp_path_factory, text, cut):
    path = tmp_path_factory.mktemp("cut") / "c.csv"
    CompletionLog(path, 1)([row(prompt="whole")])
    whole = path.stat().st_size
    CompletionLog(path, 1)([row(prompt=text, completion=text)])
    kept = path.read_bytes()[: max(whole, path.stat().st_size - cut)]
    path.write_bytes(kept)
    CompletionLog(path, 2)([row(prompt="after")])
    assert path.read_bytes().startswith(kept)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[1][2] == "whole"
    assert rows[-1][2] == "after" and len(rows[-1]) == len(COLUMNS)


def test_a_file_with_other_columns_is_refused_and_untouched(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("date,price\n1,2\n")
    with pytest.raises(RunFolderError, match="other columns: date,price"):
        CompletionLog(path, 1)
    assert path.read_text() == "date,price\n1,2\n"


def test_library_warnings_go_to_the_log_once_and_short_and_not_to_stderr(tmp_path, capfd):
    with log_file(tmp_path / "log.txt"):
        for _ in range(3):
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("old name", FutureWarning, stacklevel=1)
        logging.getLogger("transformers.trainer").warning("about %s", "x" * 9000)
        logging.getLogger("gptoss_tools.training").info("ours")
    text = (tmp_path / "log.txt").read_text()
    assert text.count("WARNING py.warnings") == 1
    assert "about xxx" in text and len(text) < 4000 and "ours" in text
    assert "xxx" not in capfd.readouterr().err
    logging.getLogger("gptoss_tools.training").warning("later")
    assert "later" not in (tmp_path / "log.txt").read_text()


def test_our_own_warnings_reach_the_watcher_and_the_libraries_only_the_log(tmp_path):
    told = []
    with log_file(tmp_path / "log.txt", told.append):
        logging.getLogger("gptoss_tools.training.rewarding").warning("12 %% are %s", "invalid")
        logging.getLogger("gptoss_tools").info("fine")
        logging.getLogger("transformers").warning("a library speaks")
    assert told == ["warning: 12 % are invalid"]
    text = (tmp_path / "log.txt").read_text()
    assert "12 % are invalid" in text and "a library speaks" in text
