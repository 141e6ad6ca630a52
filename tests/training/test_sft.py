"""Supervised runs on random two-layer models: what they learn, interrupted, resumed, refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import grpo_lab
import pytest
import sft_lab
import torch
from transformers import AutoModelForCausalLM

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.runs import open_run
from gptoss_tools.errors import ConfigError, DataError, MachineError, TrainingError
from gptoss_tools.models.adapters import attach_adapter
from gptoss_tools.models.mixlora import load as load_mixlora
from gptoss_tools.settings import SftSettings
from gptoss_tools.training.sft_heldout import mean_loss
from gptoss_tools.training.sft_passes import PassSampler
from gptoss_tools.training.sft_preparation import prepare
from gptoss_tools.training.train import Interrupted, plan, train

KINDS = ["gptoss", "llama"]
ADAPTERS = {
    "lora": {"lora_r": 2, "lora_dropout": 0.1},
    "mixlora": {"lora_r": 2, "lora_dropout": 0.1, "jitter_noise": 0.1},
    "dual": {"adapter": "mixlora", "lora_r": 2, "dual_path": True},
    "none": {},
}


def adapter(name):
    return {"adapter": name, **ADAPTERS[name]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder for each kind of model, with a table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("sft")
    for kind in KINDS:
        (home / kind).mkdir()
        sft_lab.furnish(home / kind, kind)
    yield home
    torch.set_num_threads(threads)


def plain_losses(model, data):
    """(summed loss, learned tokens) of every row, by the model's own forward, one row at a time."""
    found = []
    for row in data.dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            mean = model(input_ids=ids, labels=labels).loss
        count = int((labels[0, 1:] != -100).sum())
        found.append((float(mean) * count, count))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "mixlora", "none"])
def test_the_first_loss_is_that_of_a_plain_forward_over_the_rows_of_the_step(lab, kind, name):
    changes = {"adapter": name, "lora_dropout": 0.0, "max_steps": 1}
    sft_lab.run(lab / kind, f"one-{name}", **changes)
    (record,) = read_metrics(lab / kind / f"one-{name}/metrics.jsonl")
    data = prepare(sft_lab.settings(lab / kind, "unused")).data
    model = AutoModelForCausalLM.from_pretrained(lab / kind / "model").eval()
    rows = plain_losses(model, data)
    # micro-batches of 2, accumulated twice: 4 rows; nothing is drawn, so B = 0 is the base model
    taken = [rows[i] for i in PassSampler(7, 4, seed=42)]
    expected = sum(loss for loss, _ in taken) / sum(count for _, count in taken)
    assert record["loss"] - record.get("balance_loss", 0.0) == pytest.approx(expected, abs=1e-6)
    assert ("balance_loss" in record) == (name == "mixlora")
    assert "aux_loss" not in record  # gpt-oss's config asks for 0.9 of it
    assert record["epoch"] == pytest.approx(4 / 7)
    assert record["num_tokens"] == sum(
        len(data.dataset[i]["input_ids"]) for i in PassSampler(7, 4, 42)
    )


def stop_at(step):
    def on_step(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


@pytest.mark.parametrize("name", ADAPTERS)
def test_interrupted_and_resumed_it_ends_with_the_same_bits(lab, name):
    changes = {"logging_steps": 2, **({"adapter": name} | ADAPTERS[name])}
    sft_lab.run(lab / "gptoss", f"straight-{name}", **changes)
    with pytest.raises(Interrupted) as caught:
        train(sft_lab.settings(lab / "gptoss", f"cut-{name}", **changes), on_step=stop_at(2))
    run = open_run(lab / f"gptoss/cut-{name}")
    assert run.checkpoint().step == 3 and caught.value.hint == f"gptoss resume {run.path}"
    outcome = sft_lab.go_on(lab / "gptoss", f"cut-{name}")
    assert (outcome.resumed_from, outcome.steps) == (3, 6)
    straight = lab / f"gptoss/straight-{name}"
    assert sft_lab.same_bits(run.path, straight)
    assert [r["step"] for r in read_metrics(run.metrics_path)] == [2, 4, 6]
    figures = [n for n in read_metrics(run.metrics_path)[1] if "second" not in n and n != "segment"]
    assert {"loss", "num_tokens", "epoch", "entropy"} <= set(figures)
    for ours, theirs in zip(
        read_metrics(run.metrics_path), read_metrics(straight / "metrics.jsonl"), strict=True
    ):
        assert [ours[n] for n in figures] == [theirs[n] for n in figures]


def test_measuring_held_out_rows_changes_no_bit_and_keeps_the_best_adapter(lab):
    held = sft_lab.write(
        lab / "gptoss/held.jsonl", [{"instruction": "Say pink", "output": "pink, and more of it"}]
    )
    measured = {"eval_steps": 2, "eval_data": [held, str(lab / "gptoss/table.jsonl")]}
    changes = {**adapter("lora"), "weight_decay": 0.0}
    said = []
    outcome = train(
        sft_lab.settings(lab / "gptoss", "measured", **changes, **measured), on_notice=said.append
    )
    sft_lab.run(lab / "gptoss", "unmeasured", **changes)
    assert sft_lab.same_bits(lab / "gptoss/measured", lab / "gptoss/unmeasured")
    assert "7 of 8 held-out examples are trained on as well" in said
    records = [r for r in read_metrics(lab / "gptoss/measured/metrics.jsonl") if "eval_loss" in r]
    assert [r["step"] for r in records] == [0, 2, 4, 6]
    assert outcome.eval_loss_first == records[0]["eval_loss"]
    assert outcome.eval_loss == records[-1]["eval_loss"] < outcome.eval_loss_first
    assert outcome.best == lab / "gptoss/measured/adapter-best"
    manifest = json.loads((outcome.best / "manifest.json").read_text())
    assert manifest["eval_loss"] == min(r["eval_loss"] for r in records)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_what_was_trained_loads_again_and_has_the_loss_that_was_measured(lab, kind, name):
    table = str(lab / kind / "table.jsonl")
    changes = {"adapter": name} | ADAPTERS[name]
    outcome = sft_lab.run(
        lab / kind, f"whole-{name}", max_steps=10, eval_steps=10, eval_data=[table], **changes
    )
    if name == "none":
        model = AutoModelForCausalLM.from_pretrained(outcome.model)
    else:
        model = AutoModelForCausalLM.from_pretrained(lab / kind / "model")
        if name == "lora":
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(outcome.adapter))
        else:
            load_mixlora(model, outcome.adapter)
    rows = plain_losses(model.eval(), prepare(sft_lab.settings(lab / kind, "unused")).data)
    expected = sum(loss for loss, _ in rows) / sum(count for _, count in rows)
    assert outcome.eval_loss == pytest.approx(expected, abs=1e-5)
    assert outcome.eval_loss < outcome.eval_loss_first
    assert outcome.loss_last < outcome.loss_first


def test_the_standard_error_of_the_loss_takes_rows_as_the_unit():
    # L = 6, 2 over T = 2, 2: m = 8/4 = 2; residuals 2, -2; sqrt(8 * 2/1) / 4 = 1
    assert mean_loss([(6.0, 2, 1), (2.0, 2, 2)]) == (2.0, 1.0, 0.75)
    # L = 4, 1 over T = 4, 1: every row has the mean, so it is certain
    assert mean_loss([(4.0, 4, 0), (1.0, 1, 0)]) == (1.0, 0.0, 0.0)
    assert mean_loss([(4.0, 4, 0)]) == (1.0, None, 0.0)


def test_settings_end_in_the_run_folder_as_they_were_used(lab):
    said = []
    settings = sft_lab.settings(lab / "llama", "settled", max_steps=None, num_train_epochs=2)
    train(settings.model_copy(update={"max_length": 99_999}), on_notice=said.append)
    run = open_run(lab / "llama/settled")
    # 2 passes of 7 rows, 4 a step: 14 / 4 = 3.5 -> 4; a Llama reads 2048 tokens by default
    assert run.settings["max_steps"] == 4 and run.settings["date"]
    assert run.settings["max_length"] == 2048
    assert "max_length is 2048: the model reads no more" in said
    assert run.config["command"] == "train-sft"
    assert run.config["data"]["rows"] == 7
    assert run.config["one_pass"]["learned_tokens"] == sum(len(w) + 1 for w in sft_lab.WORDS)
    longer = sft_lab.go_on(lab / "llama", "settled", resume_steps=2)
    assert longer.steps == 6


def test_changed_data_or_settings_are_refused_by_name(lab):
    folder = lab / "changed"
    shutil.copytree(lab / "llama", folder, ignore=lambda _, names: {n for n in names if "-" in n})
    sft_lab.run(folder, "run", max_steps=2)
    with pytest.raises(ConfigError, match="prompt_template was plain and is alpaca now"):
        train(
            sft_lab.settings(
                folder, "run", prompt_template="alpaca", max_steps=4, resume=str(folder / "run")
            ),
            explicit={"prompt_template", "max_steps"},
        )
    sft_lab.write(folder / "table.jsonl", [{"instruction": "a", "output": "b"}])
    with pytest.raises(DataError, match=r"are not those .* began with"):
        sft_lab.go_on(folder, "run", max_steps=4)


def test_what_cannot_work_is_refused_before_anything_is_written(lab, monkeypatch):
    folder = lab / "llama"
    with pytest.raises(DataError, match="leaves no room for an answer in the 3 of max_length"):
        sft_lab.run(folder, "refused", max_length=3)
    with pytest.raises(ConfigError, match="chat, and the tokenizer has no chat template"):
        sft_lab.run(folder, "refused", prompt_template="chat")
    with pytest.raises(ConfigError, match="`experts`, and a llama has none"):
        sft_lab.run(folder, "refused", lora_target_modules=["experts"])
    monkeypatch.setattr("gptoss_tools.training.sft_preparation.available_bytes", lambda device: 10)
    with pytest.raises(MachineError, match="training all of this model needs about"):
        sft_lab.run(lab / "gptoss", "refused", adapter="none")
    assert not (folder / "refused").exists() and not (lab / "gptoss/refused").exists()


def test_a_loss_that_is_no_number_ends_training_before_it_is_saved(lab):
    with pytest.raises(TrainingError, match=r"the loss of step \d is (nan|inf)"):
        sft_lab.run(lab / "llama", "nan", adapter="none", learning_rate=1e30, save_steps=1)
    run = open_run(lab / "llama" / "nan")
    assert all(record["loss"] is not None for record in read_metrics(run.metrics_path))


def test_a_tokenizer_of_another_model_is_refused(lab):
    from transformers import AutoTokenizer

    folder = lab / "foreign"
    shutil.copytree(lab / "llama/model", folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["Say "] + [f"<{n}>" for n in range(40)])
    tokenizer.add_tokens(["red"])
    tokenizer.save_pretrained(folder / "model")
    shutil.copy(lab / "llama/table.jsonl", folder)
    with pytest.raises(ConfigError, match=r"gives the token 306, and the model knows 288"):
        sft_lab.run(folder, "run")


def test_a_gpt_oss_with_a_tokenizer_of_its_own_reads_headings(lab):
    folder = lab / "own"
    shutil.copytree(lab / "gptoss/model", folder / "model")
    shutil.copy(lab / "gptoss/table.jsonl", folder)
    grpo_lab.byte_tokenizer().save_pretrained(folder / "model")
    text = (folder / "model/tokenizer.json").read_text().replace("<|channel|>", "<|other|>")
    (folder / "model/tokenizer.json").write_text(text)
    found = plan(sft_lab.settings(folder, prompt_template="auto", max_length=512))
    assert found["first_prompt"].endswith("### Response:\n")
    found = plan(sft_lab.settings(lab / "gptoss", prompt_template="auto", max_length=512))
    assert found["first_prompt"].endswith("<|start|>assistant")


def test_a_plan_shows_the_first_example_and_counts_everything(lab):
    settings = sft_lab.settings(lab / "llama", "planned", max_steps=None, num_train_epochs=2)
    found = plan(settings)
    assert (found["first_prompt"], found["first_answer"]) == ("Say red", "red<|return|>")
    assert (found["examples"], found["examples_per_step"], found["steps"]) == (7, 4, 4)
    assert found["passes"] == round(16 / 7, 3)
    assert found["learned_tokens"] == sum(len(w) + 1 for w in sft_lab.WORDS)
    assert not (lab / "llama/planned").exists()
    away = plan(settings.model_copy(update={"model": "owner/name"}))
    assert away["tokens"] is None and away["steps"] == 4


def test_a_plan_counts_the_bytes_of_an_adapter_and_of_a_whole_model(lab):
    settings = sft_lab.settings(lab / "llama", "planned")
    found = plan(settings)
    # embeddings and head 2 x 288 x 32, a layer 3072 of attention, 3072 of the FFN, 2 x 32 of norms
    parameters = 18432 + 2 * (3072 + 3072 + 64) + 32
    # rank 4: in each of 2 layers 4 x (32 + 32) and 3 x (32 + 32) by 4; 16 bytes each
    adapter = 16 * 2 * 4 * (4 * 64 + 3 * 64)
    # 2 examples of 256 tokens: 32 hidden by 2 for each layer and 90 at once, halves of 4 bytes
    activations = 512 * 32 * (2 * 2 + 90) * 2
    assert found["memory_bytes"] == 4 * parameters + adapter + activations
    whole = plan(settings.model_copy(update={"adapter": "none"}))
    assert whole["memory_bytes"] == 4 * 4 * parameters  # weights, gradients and two moments
    away = plan(settings.model_copy(update={"model": "owner/name"}))
    assert (away["experts"], away["memory_bytes"]) == (None, None)


def test_a_plan_refuses_packed_experts_where_training_does(lab):
    settings = sft_lab.settings(lab / "llama", "planned", experts="packed")
    for ask in (plan, train):
        with pytest.raises(ConfigError, match="cannot stay packed in MXFP4: the model holds none"):
            ask(settings)


def test_a_resume_elsewhere_finds_data_and_model_where_the_run_began(lab, monkeypatch, tmp_path):
    monkeypatch.chdir(lab / "llama")
    template = {"prompt_input": "{instruction}{input}:", "prompt_no_input": "{instruction}:"}
    Path("own.json").write_text(json.dumps({**template, "response_split": ":"}))
    own = {"model": "model", "data": ["table.jsonl"], "output_dir": "moved", "max_steps": 2}
    train(SftSettings(**{**sft_lab.SMALL, **own, "prompt_template": "own.json"}))
    monkeypatch.chdir(tmp_path)
    assert sft_lab.go_on(lab / "llama", "moved", max_steps=3).steps == 3


def test_an_adapter_starts_the_same_whatever_the_data(lab):
    model = AutoModelForCausalLM.from_pretrained(lab / "llama/model")
    torch.manual_seed(42)
    names = dict(attach_adapter(model, sft_lab.settings(lab / "llama")).named_parameters())
    assert sum(p.requires_grad for p in names.values()) == 2 * 2 * 7  # layers, A and B, linears


def test_a_whole_model_keeps_what_its_config_said_of_its_own_losses(lab):
    outcome = sft_lab.run(lab / "gptoss", "config", adapter="none", max_steps=1)
    config = json.loads((outcome.model / "config.json").read_text())
    assert config["router_aux_loss_coef"] == 0.9


@pytest.mark.slow
def test_forty_steps_on_the_tiny_gpt_oss_lower_the_held_out_loss(tiny, cache_dir, tmp_path):
    colours = ["red", "green", "blue", "white", "black", "gold", "grey", "pink", "brown", "teal"]
    rows = [{"instruction": f"Which colour is the {w} door?", "output": w} for w in colours]
    outcome = train(
        SftSettings(
            model="tiny",
            data=[sft_lab.write(tmp_path / "a.jsonl", rows[:8])],
            eval_data=[sft_lab.write(tmp_path / "b.jsonl", rows[8:])],
            eval_steps=40,
            max_steps=40,
            gradient_accumulation_steps=1,
            learning_rate=0.01,
            output_dir=str(tmp_path / "run"),
            device="cpu",
        ),
        cache_dir=cache_dir,
    )
    errors = [
        r["eval_loss_se"] for r in read_metrics(tmp_path / "run/metrics.jsonl") if "eval_loss" in r
    ]
    assert outcome.eval_loss_first - outcome.eval_loss > 5 * max(errors)
