"""evaluate: what is asked, written, found again after a stop, and refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gptoss_tools.data.decisions import load_table
from gptoss_tools.errors import ConfigError, DataError, RunFolderError
from gptoss_tools.evaluation.evaluate import evaluate
from gptoss_tools.evaluation.metrics import Choices, row_scores
from gptoss_tools.evaluation.work import baselines_of, episodes_of, prepare
from gptoss_tools.models.loading import read_config
from gptoss_tools.models.machine import estimate_memory
from gptoss_tools.settings import EvaluateSettings

PROMPT = "<|start|>user<|message|>case {}<|end|><|start|>assistant"
HEADER = "episode,timestamp,phase,baseline_rule,prompt,q_action_0,q_action_1,reward_action_0"


def write_table(path: Path, rows: int = 6, **columns: str) -> Path:
    lines = [HEADER + ",reward_action_1"]
    for row in range(rows):
        kind, rule = ("day", "night")[row % 2], ("1", "")[row % 2]
        time_of = f"2025-06-0{1 + row // 3}T{8 + row % 3:02d}:00:00"
        prompt = PROMPT.format(row)
        lines.append(f"e{row // 3},{time_of},{kind},{rule},{prompt},{row},1.5,0.25,0.75")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return write_table(tmp_path / "held.csv")


def settings(target: Path, table: Path, **more) -> EvaluateSettings:
    own = {"data": [str(table)], "max_new_tokens": 8, "device": "cpu", "batch_size": 4}
    return EvaluateSettings(target=str(target), **{**own, **more})


def test_an_evaluation_writes_its_figures_and_one_line_per_row(untrained, table):
    seen: list[tuple[int, int]] = []
    work = prepare(settings(untrained, table, samples=2, out="ev"))
    result = evaluate(work, on_progress=lambda done, total: seen.append((done, total)))
    # an untrained model answers with garbage: the worst action of rows 0..5, Q = (row, 1.5)
    worst = [1.5, 0.5, 0.5, 1.5, 2.5, 3.5]
    assert result["regret"]["mean"] == pytest.approx(sum(worst) / 6)
    assert result["invalid"]["total"] == 1
    assert result["invalid"]["truncated"] + result["invalid"]["no_final"] == 1
    assert result["n_rows"] == 6 and result["n_episodes"] == 2
    assert result["regret"]["base"] is None and result["base"] is None
    assert set(result["by_phase"]) == {"day", "night"}
    assert result["sampled"]["n"] == 2 and result["sampled"]["temperature"] == 1.0
    assert json.loads(Path("ev/evaluation.json").read_text()) == result
    lines = [json.loads(line) for line in Path("ev/decisions.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["regret"] for line in lines] == worst
    assert lines[0]["baselines"] == {"rule": 1} and lines[1]["baselines"] == {"rule": None}
    assert lines[2]["votes"] == [0, 0, 2] and lines[2]["optimal_action"] == 0
    assert lines[2]["where"].endswith("held.csv row 3")
    assert seen[-1] == (18, 18)  # 6 rows, greedy and twice drawn


def test_finished_rows_are_not_decoded_again_and_draws_are_those_of_the_whole(
    untrained, table, monkeypatch
):
    whole = evaluate(prepare(settings(untrained, table, samples=2, out="whole")))
    evaluate(prepare(settings(untrained, table, samples=2, out="cut")))
    journal = Path("cut/answers.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    kept = [lines[0], *lines[1::2]]
    journal.write_text("".join(kept) + lines[2][:20])
    asked = []
    from gptoss_tools.evaluation.policy import Policy

    answer = Policy.answer
    monkeypatch.setattr(
        Policy,
        "answer",
        lambda self, prompts, *a, **k: asked.extend(prompts) or answer(self, prompts, *a, **k),
    )
    said: list[str] = []
    again = evaluate(
        prepare(settings(untrained, table, samples=2, out="cut")), on_notice=said.append
    )
    assert len(asked) == 18 - 9
    assert any("9 answers are in" in line for line in said)
    for name in ("regret", "sampled", "invalid"):
        assert again[name] == whole[name]

    def texts(folder: str) -> dict:
        records = map(json.loads, _answers(Path(folder, "answers.jsonl")))
        return {(r["draw"], r["question"]): r["completion"] for r in records}

    assert texts("cut") == texts("whole")


def test_more_draws_later_keep_the_answers_that_are_there(untrained, table):
    evaluate(prepare(settings(untrained, table, out="ev")))
    before = Path("ev/answers.jsonl").read_text()
    evaluate(prepare(settings(untrained, table, samples=1, out="ev")))
    after = Path("ev/answers.jsonl").read_text()
    assert after.startswith(before) and after.count("\n") == before.count("\n") + 6


def test_a_folder_with_another_evaluation_or_with_anything_else_is_refused(untrained, table):
    evaluate(prepare(settings(untrained, table, out="ev")))
    with pytest.raises(RunFolderError, match="something else: max_new_tokens differ"):
        evaluate(prepare(settings(untrained, table, out="ev", max_new_tokens=9)))
    evaluate(prepare(settings(untrained, table, out="ev", max_new_tokens=9, overwrite=True)))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="mine is not empty"):
        evaluate(prepare(settings(untrained, table, out="mine", overwrite=True)))
    assert Path("mine/notes.txt").read_text() == "keep"


def test_a_base_of_its_own_is_answered_and_paired(untrained, table):
    result = evaluate(prepare(settings(untrained, table, compare_with=str(untrained), out="ev")))
    assert result["regret"]["base"] == result["regret"]["mean"]
    assert result["regret"]["difference"]["mean"] == 0
    assert result["regret"]["difference"]["ci95"] == [0, 0]
    assert {"policy", "base", "rule", "best", "uniform", "fixed"} == {
        p["name"] for p in result["policies"]
    }


def test_rows_without_episodes_are_refused_unless_they_stand_alone(table):
    lines = table.read_text().replace("episode,", "day,", 1)
    table.write_text(lines)
    held = load_table(table)
    with pytest.raises(DataError, match="no column episode: rows of one episode") as caught:
        episodes_of(held, "episode")
    assert "--episode-column row" in caught.value.hint
    assert episodes_of(held, "row") is None
    assert episodes_of(held, "day") == ["e0"] * 3 + ["e1"] * 3


def test_a_row_whose_episode_has_no_name_is_named(table):
    table.write_text(table.read_text().replace("e1,2025-06-02T09", ",2025-06-02T09"))
    with pytest.raises(DataError, match=r"held\.csv row 5, column episode"):
        episodes_of(load_table(table), "episode")


def test_a_rule_that_chooses_no_action_of_its_row_is_named(table):
    held = load_table(table)
    assert baselines_of(held)["rule"].action.tolist() == [1, -1, 1, -1, 1, -1]
    table.write_text(table.read_text().replace(",day,1,", ",day,2,", 1))
    with pytest.raises(DataError, match=r"row 1, column baseline_rule: '2' is not one of"):
        baselines_of(load_table(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.splitlines()[0] + "\n", "no rows"),
        (lambda text: text.replace("q_action", "reward_old"), "neither q_action|no q_action"),
    ],
)
def test_empty_tables_and_tables_without_values_are_refused(untrained, table, change, message):
    table.write_text(change(table.read_text()))
    with pytest.raises(DataError, match=message):
        prepare(settings(untrained, table))


def test_an_adapter_is_no_base(untrained, table, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(untrained), "peft_type": "LORA"})
    )
    with pytest.raises(ConfigError, match=r"is .*adapter, an adapter: name a model"):
        prepare(settings(untrained, table, compare_with=str(adapter)))


def test_a_series_with_a_hole_is_refused_by_file_row_and_column(untrained, table):
    hours = [f"2025-06-0{1 + h // 24}T{h % 24:02d}:00,20,0.3" for h in range(48) if h != 5]
    Path("s.csv").write_text("datetime,load_kw,carbon\n" + "\n".join(hours) + "\n")
    with pytest.raises(DataError, match=r"s\.csv: row 6, column 'datetime': .* is not one hour"):
        prepare(settings(untrained, table, closed_loop=["s.csv"]))


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_as_if_it_had_not_been(tiny, repository):
    [held] = (repository / "data" / "heldout").glob("*.csv")
    rows = 48  # the first 4 of 12 episodes
    pd.read_csv(held).head(rows).to_csv("held.csv", index=False)

    def line(out: str) -> list[str]:
        return [
            *(sys.executable, "-m", "gptoss_tools", "evaluate", str(tiny), "--data", "held.csv"),
            *("--max-new-tokens", "40", "--batch-size", "8", "--samples", "2", "--json"),
            *("--out", out),
        ]

    process = subprocess.Popen(line("cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = Path("cut/answers.jsonl")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if journal.exists() and journal.read_text().count("\n") > 30:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    had = journal.read_text().count("\n") - 1
    assert 30 <= had < 3 * rows
    assert not Path("cut/evaluation.json").exists()
    done = subprocess.run(line("cut"), capture_output=True, text=True, check=True)
    again = json.loads(done.stdout)
    straight = json.loads(
        subprocess.run(line("whole"), capture_output=True, text=True, check=True).stdout
    )
    for name in ("regret", "reward", "invalid", "actions", "sampled", "top1"):
        assert again[name] == straight[name]
    keys = {(r["who"], r["draw"], r["question"]) for r in map(json.loads, _answers(journal))}
    assert len(keys) == len(list(_answers(journal))) == 3 * rows


def _answers(journal: Path) -> list[str]:
    return [line for line in journal.read_text().splitlines() if '"seconds"' in line]


@pytest.mark.slow
def test_the_policy_drives_the_plant_and_its_regrets_sum_to_its_loss(tiny, repository):
    from gptoss_tools.tes.series import generate

    for name, seed in (("duck", 7), ("peak", 8)):
        series = generate(name, 2, seed)
        with Path(f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["datetime", "load_kw", "carbon_kg_per_kwh"])
            for moment, load, carbon in zip(
                series.time, series.load_kw, series.carbon, strict=True
            ):
                writer.writerow([moment.isoformat(), load, carbon])
    data = repository / "data" / "heldout"
    more = {"max_new_tokens": 40, "closed_loop": ["*.csv"], "out": "ev", "compare_with": str(tiny)}
    result = evaluate(prepare(settings(tiny, data, **more)))
    loop = {p["name"]: p for p in result["closed_loop"]["policies"]}
    rules = {"greedy", "load_following", "night", "solar", "plan", "random"}
    assert rules | {"policy", "base", "optimal"} == set(loop) == set(result["kg_co2"])
    for policy in loop.values():
        assert policy["regret_sum"] == pytest.approx(policy["loss"], abs=1e-9)
        assert policy["loss"] >= -1e-9
    assert loop["policy"] == {**loop["base"], "name": "policy"}
    hours = [json.loads(line) for line in Path("ev/closed_loop.jsonl").read_text().splitlines()]
    driven = [h for h in hours if h["policy"] == "policy" and h["reason"] != "off"]
    assert len(driven) == 2 * 2 * 10  # two series of two days with ten decisions each
    before = Path("ev/answers.jsonl").read_text()
    evaluate(prepare(settings(tiny, data, **more)))
    assert Path("ev/answers.jsonl").read_text() == before  # nothing was decoded again


def test_decisions_are_scored_as_the_metrics_say(untrained, table):
    evaluate(prepare(settings(untrained, table, out="ev")))
    held = load_table(table)
    lines = [json.loads(line) for line in Path("ev/decisions.jsonl").read_text().splitlines()]
    chosen = Choices(
        np.array([-1 if x["action"] is None else x["action"] for x in lines]),
        [x["reason"] for x in lines],
    )
    assert row_scores(held, chosen).regret.tolist() == [x["regret"] for x in lines]


def test_it_says_when_experts_stay_packed_by_themselves(untrained, table, monkeypatch):
    need = estimate_memory(read_config(str(untrained)), weight_bytes=4)
    assert need.packed_loaded < need.float32
    for module in ("experts", "machine"):
        monkeypatch.setattr(
            f"gptoss_tools.models.{module}.available_bytes", lambda device: need.packed_loaded
        )
    said: list[str] = []
    evaluate(prepare(settings(untrained, table, out="ev")), on_notice=said.append)
    assert sum("experts stay packed in MXFP4" in line for line in said) == 1
    said.clear()
    asked = settings(untrained, table, out="asked", experts="packed")
    evaluate(prepare(asked), on_notice=said.append)
    assert not any("stay packed" in line for line in said)
