"""A pretraining run that goes on: the same bits as one that never stopped, and what may differ."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pretrain_lab
import pytest
import torch
from transformers import AutoTokenizer

from gptoss_tools.core.runs import open_run
from gptoss_tools.errors import ConfigError, RunFolderError
from gptoss_tools.settings import ResumeSettings
from gptoss_tools.training.flow import Interrupted
from gptoss_tools.training.train import plan, resume


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return pretrain_lab.furnish(tmp_path_factory.mktemp("resume"))


@pytest.mark.slow
def test_saved_at_200_and_resumed_for_300_steps_it_ends_at_500_as_if_it_had_never_stopped(lab):
    every = {"eval_steps": 100, "save_steps": 200, "logging_steps": 1}
    straight = pretrain_lab.run(lab, "straight", max_steps=500, **every)
    first = pretrain_lab.run(lab, "first", max_steps=200, **every)
    before = pretrain_lab.history(first.run)
    done = pretrain_lab.go_on(lab, "first", resume_steps=300)
    assert (done.steps, done.resumed_from) == (500, 200)
    assert pretrain_lab.same_bits(done, straight)
    assert pretrain_lab.history(done.run) == pretrain_lab.history(straight.run)
    assert pretrain_lab.history(done.run)[: len(before)] == before
    fresh, resumed = sorted(p.name for p in (done.run / "logs").iterdir())[::-1]
    assert fresh.startswith("training_log_") and resumed.startswith("resume_training_log_")
    lines = (done.run / "logs" / resumed).read_text().splitlines()
    assert lines[1] == "Resuming from step 200"
    # the loss at the start was measured before the first step, and is that of step 200
    step = next(line for line in lines if line.startswith("step "))
    assert step.startswith("step 200: train loss")
    assert f"validation loss {before[200]['eval_loss']:.4f}" in step
    assert lines[lines.index(step) + 1].startswith("step 201: loss")
    assert "Resuming from step 200" in (done.run / "log.txt").read_text()


KINDS = {
    "bigram": {},
    "bigram-lora": {"adapter": "lora"},
    "gpt2": {"model_type": "gpt2"},
    "gpt-oss": {"model_type": "gpt-oss", "router_aux_loss_coef": 0.1},
    "pairs": {"tokenizer": "bpe", "vocab_size": 300},
    "from": {"from_": "gpt2"},
    "from-lora": {"from_": "gpt2", "adapter": "lora", "lora_dropout": 0.1},
    "accumulated": {"gradient_accumulation_steps": 3, "lr_scheduler_type": "cosine"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_goes_on_from_any_step_with_the_same_bits(lab, kind):
    changes = dict(KINDS[kind])
    if "from_" in changes:
        changes["from_"] = str(lab / "gpt2")
    straight = pretrain_lab.run(lab, f"{kind}-straight", max_steps=8, **changes)
    stop = pretrain_lab.signal_at(4, signal.SIGINT)  # the step in progress is finished
    with pytest.raises(Interrupted, match="after step 5 of 8"):
        pretrain_lab.run(lab, f"{kind}-stopped", max_steps=8, on_step=stop, **changes)
    run = lab / f"{kind}-stopped"
    assert open_run(run).state == "interrupted"
    done = resume(ResumeSettings(run=str(run)))
    assert (done.steps, done.resumed_from) == (8, 5)
    assert pretrain_lab.same_bits(done, straight)
    assert pretrain_lab.history(done.run) == pretrain_lab.history(straight.run)
    assert (done.run / "sample.txt").read_text() == (straight.run / "sample.txt").read_text()


def test_lora_reaches_every_layer_of_a_gpt2_and_its_base_is_named(lab):
    outcome = pretrain_lab.run(
        lab, "reach", from_=str(lab / "gpt2"), adapter="lora", lora_r=3, max_steps=2
    )
    config = json.loads((outcome.adapter / "adapter_config.json").read_text())
    assert {name.split(".", 3)[-1] for name in config["target_modules"]} == {
        *("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert (config["r"], config["lora_alpha"]) == (3, 32)
    assert Path(config["base_model_name_or_path"]) == (lab / "gpt2").resolve()


def test_a_whole_model_goes_on_without_the_one_it_came_from(lab):
    shutil.copytree(lab / "gpt2", lab / "moved")
    pretrain_lab.run(lab, "orphan", from_=str(lab / "moved"), max_steps=3)
    shutil.rmtree(lab / "moved")
    assert pretrain_lab.go_on(lab, "orphan", resume_steps=2).steps == 5


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_with_the_same_bits(lab):
    straight = pretrain_lab.run(lab, "alive", max_steps=10)
    more = json.dumps({"name": "killed", "max_steps": 10, "die_at": 7})
    command = [sys.executable, pretrain_lab.__file__, str(lab), "train", more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=lab, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    end = resume(ResumeSettings(run=str(lab / "killed")))
    assert 0 < end.resumed_from <= 7
    assert pretrain_lab.same_bits(end, straight)
    assert pretrain_lab.history(end.run) == pretrain_lab.history(straight.run)


def test_new_text_and_a_new_rate_take_effect_and_are_said(lab):
    pretrain_lab.run(lab, "old", max_steps=4)
    tokenizer = AutoTokenizer.from_pretrained(lab / "old" / "model")
    (lab / "new.txt").write_text("Zebras jump, and the cat sat.\n" * 30)
    said = []
    done = pretrain_lab.go_on(
        lab, "old", data=[str(lab / "new.txt")], learning_rate=1e-5, resume_steps=3,
        on_notice=said.append,
    )  # fmt: skip
    told = "\n".join(said)
    assert "learning_rate was 0.01 and is 1e-05 now" in told
    assert f"the data in {lab / 'new.txt'} changed" in told
    # Z, b, j, p and the comma are in no line of the old text, m is in mat: 5 in each of 30 lines
    assert "150 of 900 tokens are unknown to the tokenizer" in told
    records = [r for r in pretrain_lab.history(done.run) if "loss" in r]
    assert [r["learning_rate"] for r in records] == [0.01] * 4 + [1e-5] * 3
    kept = AutoTokenizer.from_pretrained(done.model)
    assert kept.get_vocab() == tokenizer.get_vocab()
    assert json.loads((done.run / "config.json").read_text())["settings"]["learning_rate"] == 1e-5


def test_what_the_checkpoint_decides_cannot_be_changed(lab):
    pretrain_lab.run(lab, "fixed", max_steps=2)
    other = {
        "hidden_size": 32,
        "block_size": 16,
        "dropout": 0.0,
        "tokenizer": "bpe",
        "adapter": "lora",
        "model_type": "gpt2",
    }
    for name, value in other.items():
        with pytest.raises(ConfigError, match=f"{name} was .* what was saved has another shape"):
            pretrain_lab.go_on(lab, "fixed", resume_steps=2, **{name: value})
    # the same value once more is no change
    assert pretrain_lab.go_on(lab, "fixed", resume_steps=1, hidden_size=16, dropout=0.2).steps == 3
    with pytest.raises(RunFolderError, match="is finished"):
        resume(ResumeSettings(run=str(lab / "fixed")))
    found = plan(ResumeSettings(run=str(lab / "fixed"), resume_steps=7))
    assert (found["starts_after_step"], found["steps"]) == (3, 7)


def test_the_scripts_variables_train_and_go_on(lab, gptoss, monkeypatch):
    fresh = {
        "MODEL_TYPE": "from_scratch",
        "TRAINING_DATA_SOURCE": str(lab / "text.txt"),
        "TRAINING_STEPS": "6",
        "BATCH_SIZE": "4",
        "BLOCK_SIZE": "8",
        "CHECKPOINT_INTERVAL": "3",
        "LOG_DIR": "logs",
        "GPTOSS_HIDDEN_SIZE": "16",
        "GPTOSS_EVAL_BATCHES": "2",
        "GPTOSS_OUTPUT_DIR": "mine",
        "DEVICE": "cpu",
    }
    for name, value in fresh.items():
        monkeypatch.setenv(name, value)
    code, shown, said = gptoss("pretrain", "--max-new-tokens", "10")
    assert code == 0, said
    assert "LOG_DIR has no meaning here" in said
    assert shown.startswith("run: mine\nsteps: 6\n") and "\nsample: " in shown
    monkeypatch.setenv("CHECKPOINT_PATH", "mine/checkpoints/step-000003")
    monkeypatch.setenv("RESUME_STEPS", "5")
    monkeypatch.setenv("LEARNING_RATE", "1e-3")
    code, shown, said = gptoss("pretrain", "--json")
    assert code == 0, said
    assert (json.loads(shown)["steps"], json.loads(shown)["resumed_from"]) == (8, 3)
    assert "mine goes on after step 3 of 8" in said
    assert "learning_rate was 0.0003 and is 0.001 now" in said
