"""The exact calls of the README, in this process, on small tables."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

LEGACY = "system: Answer with [k].\nuser: Hour {i}: run or not?"


@pytest.fixture
def table():
    """A legacy table at data/x.csv with one row per hour."""
    frame = pd.DataFrame(
        {
            "prompt": [LEGACY.format(i=i) for i in range(6)],
            "q_action_0": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
            "q_action_1": [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
        }
    )
    Path("data").mkdir()
    frame.to_csv("data/x.csv", index=False)
    return Path("data/x.csv")


def test_the_three_data_commands_lead_from_a_legacy_table_to_one_that_trains(gptoss, table):
    code, out, err = gptoss("convert-harmony", "data/x.csv", "--date", "2026-01-01", "--json")
    assert code == 0, err
    assert json.loads(out)["files"][0]["converted"] == 6
    assert gptoss("calc-reward", "--tau", "0.05")[0] == 0
    code, out, err = gptoss("check-data", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    done = pd.read_csv("data/x_harmony_with_reward.csv")
    # softmax of (0, 0.5) / 0.05 = 1 / (1 + e^10)
    assert done["reward_action_0"][0] == pytest.approx(1 / (1 + 2.718281828459045**10), rel=1e-12)
    assert "Current date: 2026-01-01" in done["prompt"][0]


def test_an_output_in_the_way_is_refused_and_left_as_it_was(gptoss, table):
    assert gptoss("convert-harmony", "data/x.csv")[0] == 0
    target = table.with_name("x_harmony.csv")
    target.write_text("mine")
    code, out, err = gptoss("convert-harmony", "data/x.csv")
    assert (code, out) == (2, "")
    assert "x_harmony.csv" in err and "hint:" in err
    assert target.read_text() == "mine"


def test_a_dry_run_writes_nothing(gptoss, table):
    before = sorted(p.name for p in table.parent.iterdir())
    assert gptoss("convert-harmony", "data", "--dry-run")[0] == 0
    assert gptoss("calc-reward", "data", "--dry-run")[0] == 0
    assert gptoss("make-dataset", "--out", "data/new.csv", "--episodes", "1", "--dry-run")[0] == 0
    assert sorted(p.name for p in table.parent.iterdir()) == before


def test_check_data_says_every_problem_at_once_with_exit_code_2(gptoss, table):
    frame = pd.read_csv(table).astype({"q_action_0": object})
    frame.loc[1, "q_action_0"] = "much"
    frame.loc[3, "prompt"] = ""
    frame.to_csv(table, index=False)
    code, out, _ = gptoss("check-data", "data/x.csv")
    assert code == 2
    for words in ("row 2, column q_action_0", "row 4", "reward columns are missing"):
        assert words in out, words


def test_make_dataset_takes_any_levels_and_ones_own_series(gptoss, tmp_path):
    levels = [x for level in ("0", "0.5", "1") for x in ("--levels", level)]
    code, out, err = gptoss("make-dataset", "--episodes", "2", *levels, "--json")
    assert code == 0, err
    assert json.loads(out)["actions"] == 3
    hours = pd.date_range("2026-06-01", periods=48, freq="h")
    pd.DataFrame({"時刻": hours, "冷房負荷": 20.0, "排出係数": [0.2, 0.5] * 24}).to_csv(
        "mine.csv", index=False
    )
    code, out, err = gptoss(
        "make-dataset", "--series", "mine.csv", "--out", "own.parquet", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["rows"] == len(pd.read_parquet("own.parquet"))


def test_generate_wants_one_kind_of_question(gptoss):
    code, _, err = gptoss("generate", "tiny")
    assert code == 2 and "either a prompt or a table" in err


def test_export_with_push_and_no_token_ends_before_anything_is_done(gptoss, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    code, out, err = gptoss("export", "--push", "--repo-id", "me/mine")
    assert (code, out) == (3, "")
    assert "HF_TOKEN" in err
    assert not (tmp_path / "exports").exists()


def test_train_plan_reads_the_table_and_writes_nothing(gptoss, repository):
    code, out, err = gptoss(
        "train-grpo", "--data", repository / "data" / "train", "--dry-run", "--json"
    )
    assert code == 0, err
    plan = json.loads(out)
    # the seed's recipe: 4 micro-steps of 1 prompt, 16 completions each, 200 steps
    assert (plan["completions_per_step"], plan["completions"]) == (64, 64 * 200)
    assert not Path("runs").exists()


def test_the_shipped_tables_are_sound_and_share_no_episode(gptoss, repository):
    code, out, _ = gptoss("check-data", repository / "data", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    [train] = (repository / "data" / "train").glob("*.csv")
    [heldout] = (repository / "data" / "heldout").glob("*.csv")
    seen, unseen = pd.read_csv(train), pd.read_csv(heldout)
    assert not set(seen["episode"]) & set(unseen["episode"])
    assert set(seen["optimal_action"]) == {0, 1, 2, 3}


def test_config_shows_origins(gptoss, monkeypatch):
    monkeypatch.setenv("GPTOSS_TAU", "0.1")
    code, out, _ = gptoss("config", "calc-reward", "--json")
    assert code == 0
    assert json.loads(out)["tau"] == {"setting": "tau", "value": "0.1", "origin": "GPTOSS_TAU"}


def test_a_used_run_folder_is_refused_with_the_ways_out(gptoss, repository, tmp_path):
    run = tmp_path / "used"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    data = repository / "data" / "train"
    code, _, err = gptoss("train-grpo", "--data", data, "--output-dir", run, "--dry-run")
    assert code == 2 and "used" in err and "hint:" in err
    shutil.rmtree(run)


def test_what_a_training_lacks_is_said_before_a_run_folder_is_made(gptoss, repository, tiny):
    common = ("train-grpo", "--model", tiny, "--data", repository / "data" / "train")
    code, _, err = gptoss(*common, "--output-dir", "run", "--attn-implementation", "foo")
    assert code == 2 and "`foo`" in err.replace("'", "`") and "flex_attention" in err
    Path("gptoss.toml").write_text("[trainer]\nuse_vllm = true\n")
    if importlib.util.find_spec("vllm") is None:
        code, _, err = gptoss(*common, "--output-dir", "run")
        assert code == 3 and "vllm" in err
    assert not Path("run").exists()


def test_a_damaged_adapter_is_named(gptoss, repository, tiny, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(tiny)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes(b"nonsense")
    code, out, err = gptoss("test-adapter", adapter, "--prompt", "user: hi")
    assert (code, out) == (2, "")
    assert str(adapter) in err and "Traceback" not in err


def test_the_shipped_tables_and_prompts_are_what_the_tool_writes(repository, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(repository / "tools"))
    write_data = importlib.import_module("write_data")
    write_data.write_tables(tmp_path)
    for name in ("train", "heldout"):
        [shipped] = (repository / "data" / name).glob("*.csv")
        ours, fresh = pd.read_csv(shipped), pd.read_csv(tmp_path / name / shipped.name)
        pd.testing.assert_frame_equal(ours, fresh, rtol=1e-9)
    write_data.write_prompts(tmp_path / "prompts.json")
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert prompts == json.loads(write_data.PROMPTS.read_text())
