"""gptoss train-sft on the command line, and what it stands on in TRL."""

import inspect
import json
from pathlib import Path

import pytest
import sft_lab
import torch
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from gptoss_tools.core.history import read_metrics
from gptoss_tools.training.sft_trainer import SAME_NAME, SftTrainer, make_config
from gptoss_tools.training.steady import SteadySaves

# name: parameters after self
OVERRIDDEN = {
    "_send_telemetry": "",
    "create_model_card": "model_name, dataset_name, tags",
    "_get_train_sampler": "train_dataset",
    "compute_loss": "model, inputs, return_outputs, num_items_in_batch",
    "_save": "output_dir, state_dict",
    "_save_checkpoint": "model, trial",
    "_load_from_checkpoint": "resume_from_checkpoint, model",
    "_load_optimizer_and_scheduler": "checkpoint",
    "log": "logs, start_time",
}
COLOURS = [{"instruction": f"Say {word}", "output": word} for word in sft_lab.WORDS]
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|return|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_trl_still_has_the_signature_we_override(name):
    parameters = list(inspect.signature(getattr(SFTTrainer, name)).parameters)[1:]
    assert ", ".join(parameters) == OVERRIDDEN[name]


def test_nothing_else_is_overridden_and_the_arguments_exist():
    both = {**vars(SteadySaves), **vars(SftTrainer)}
    ours = {n for n, v in both.items() if callable(v) and not n.startswith("__")}
    assert {n for n in ours if hasattr(SFTTrainer, n)} == OVERRIDDEN.keys()
    assert set(SAME_NAME) <= set(inspect.signature(SFTConfig).parameters)


def test_no_loss_of_the_checkpoint_s_own_and_no_preparation_behind_our_back(tmp_path):
    config = make_config(sft_lab.settings(tmp_path), str(tmp_path))
    assert config.router_aux_loss_coef == 0.0
    assert config.dataset_kwargs == {"skip_prepare_dataset": True}
    assert not config.packing and config.report_to == []
    assert not config.bf16 and not config.fp16
    half = make_config(sft_lab.settings(tmp_path, dtype="bfloat16"), str(tmp_path))
    assert half.bf16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    place = sft_lab.furnish(tmp_path_factory.mktemp("cli"), "llama")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(place / "model")
    return place


def test_a_run_from_the_command_line_to_its_adapter_and_on(folder, gptoss):
    (folder / "colours.json").write_text(json.dumps(COLOURS), encoding="utf-8")
    flags = ["--model", folder / "model", "--data", folder / "colours.json", "--device", "cpu"]
    sizes = ["--num-train-epochs", "1.5", "--per-device-train-batch-size", "2"]
    code, plan, _ = gptoss("train-sft", *flags, *sizes, "--dry-run", "--json")
    assert code == 0
    planned = json.loads(plan)
    # 1.5 passes of 7 rows, 2 x 4 a step: 10.5 / 8 -> 2
    assert planned["steps"] == 2
    assert planned["first_prompt"] == (
        "<|start|>user<|message|>Say red<|return|><|start|>assistant<|message|>"
    )
    assert planned["first_answer"] == "red<|return|>"
    code, result, errors = gptoss("train-sft", *flags, *sizes, "--json")
    assert code == 0, errors
    outcome = json.loads(result)
    assert outcome["run"] == "runs/sft-001" and outcome["steps"] == 2
    assert "reward_first" not in outcome and outcome["adapter"] == "runs/sft-001/adapter"
    assert "loss" in errors
    code, result, _ = gptoss("resume", "--resume-steps", "1", "--json")
    assert code == 0 and json.loads(result)["steps"] == 3
    assert [r["step"] for r in read_metrics(Path("runs/sft-001/metrics.jsonl"))] == [1, 2, 3]
    code, listed, _ = gptoss("runs", "--json")
    assert code == 0 and "sft-001" in listed


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"instruction": "Say", "input": "red", "output": "red"}, ["--prompt-template", "alpaca"]),
        ({"prompt": "Say red", "completion": "red"}, ["--adapter", "mixlora"]),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            ["--no-completion-only-loss"],
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            ["--adapter", "none", "--no-gradient-checkpointing"],
        ),
    ],
)
def test_every_format_trains(folder, gptoss, row, flags, tmp_path):
    data = sft_lab.write(tmp_path / "rows.jsonl", [row, row])
    common = ["--model", folder / "model", "--device", "cpu", "--max-steps", "1", "--data", data]
    code, _, errors = gptoss("train-sft", *common, *flags)
    assert code == 0, errors
    (record,) = read_metrics(tmp_path / "runs/sft-001/metrics.jsonl")
    assert 0 < record["loss"] < 10


def test_what_is_wrong_is_said_in_one_sentence_and_leaves_nothing(folder, gptoss, tmp_path):
    flags = ["--model", folder / "model", "--device", "cpu"]
    bad = sft_lab.write(tmp_path / "bad.jsonl", [{"instruction": "a", "output": ""}])
    for data, code, sentence in [
        (bad, 2, "bad.jsonl row 1, column output: the cell is empty"),
        ("nowhere.csv", 2, "nowhere.csv does not exist"),
        ("owner/name", 3, "data owner/name is no file here and the Hub did not give it"),
    ]:
        found = gptoss("train-sft", *flags, "--data", data)
        assert found[0] == code and sentence in found[2], found[2]
    found = gptoss("train-sft", *flags, "--max-length", "0")
    assert found[0] == 2 and "`max_length` = '0' (from --max-length)" in found[2]
    assert not (tmp_path / "runs").exists()
