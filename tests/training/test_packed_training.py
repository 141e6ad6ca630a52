"""Training over experts that stay packed in MXFP4: the dequantised model's bits, run by run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from typing import Any

import grpo_lab
import pretrain_lab
import pytest
import run_lab
import sft_lab
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.runs import open_run
from gptoss_tools.errors import ConfigError
from gptoss_tools.models.experts import held_as
from gptoss_tools.models.layout import checkpoint_tensors, published_config
from gptoss_tools.models.loading import load_with_adapter
from gptoss_tools.training import grpo_method
from gptoss_tools.training.train import plan

SHORT = {"max_steps": 3, "save_steps": 1}
PACKED, PLAIN = SHORT | {"experts": "packed"}, SHORT | {"experts": "dequantized"}
PARALLEL = {"adapter": "mixlora", "mixlora_form": "parallel", "lora_r": 2, "num_experts": 3}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A table, and a model of random numbers in the published layout."""
    folder = run_lab.furnish(tmp_path_factory.mktemp("packed"))
    model: Any = grpo_lab.tiny_model(lora=False)
    save_file(checkpoint_tensors(model.state_dict()), folder / "model" / "model.safetensors")
    described = published_config(model.config, eos_token_id=0)
    (folder / "model" / "config.json").write_text(json.dumps(described))
    sft_lab.furnish(folder / "examples")
    shutil.rmtree(folder / "examples" / "model")
    return folder


@pytest.fixture(scope="module")
def whole(lab):
    """An uninterrupted run of three steps over packed experts."""
    return run_lab.run(lab, "whole", **PACKED).run


def told(run):
    """What the metrics say of learning; times are another matter."""
    names = ("step", "loss", "grad_norm", "reward", "entropy", "balance_loss")
    return [{n: r[n] for n in names if n in r} for r in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": False, "lora_dropout": 0.1},
        {"share_prompts": True},
        PARALLEL,
        {"dtype": "bfloat16"},
    ],
    ids=["lora", "without checkpointing", "shared prompts", "mixlora", "bfloat16"],
)
def test_a_whole_run_over_packed_experts_ends_with_the_bits_of_the_dequantised_one(
    lab, options, request, monkeypatch
):
    name = request.node.callspec.id
    seen = []
    real = grpo_method.DecisionTrainer.build

    def build(*args, model, **more):
        seen.append(held_as(model))
        return real(*args, model=model, **more)

    monkeypatch.setattr(grpo_method.DecisionTrainer, "build", build)
    ours = run_lab.run(lab, f"packed {name}", **PACKED, **options).run
    theirs = run_lab.run(lab, f"plain {name}", **PLAIN, **options).run
    assert seen == ["packed", "dequantized"]
    assert run_lab.same_bits(ours / "adapter", theirs / "adapter")
    assert told(ours) == told(theirs) and len(told(ours)) == 3
    moved = run_lab.weights(ours / "adapter")
    assert all(tensor.abs().sum() > 0 for name, tensor in moved.items() if "q_proj.lora_B" in name)


def test_examples_are_learned_over_packed_experts_to_the_same_bits(lab):
    model = {"model": str(lab / "model"), "max_steps": 3, "save_steps": 3}
    runs = [
        sft_lab.run(lab / "examples", how, **model, experts=how).run
        for how in ("packed", "dequantized")
    ]
    assert sft_lab.same_bits(*runs)


def test_text_is_learned_over_packed_experts_to_rounding(lab):
    pretrain_lab.write_text(lab / "text.txt")
    options = {"from_": str(lab / "model"), "adapter": "lora", "lora_r": 2, "max_steps": 3}
    packed, plain = (
        pretrain_lab.run(lab, f"text {how}", **options, experts=how)
        for how in ("packed", "dequantized")
    )
    found, expected = pretrain_lab.weights(packed), pretrain_lab.weights(plain)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():  # its dequantised experts are eager, which add otherwise
        assert (found[name] - tensor).norm() < 1e-3 * tensor.norm(), name
    assert open_run(packed.run).config["settings"]["experts"] == "packed"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(lab, whole):
    code = [sys.executable, run_lab.__file__, str(lab), "train"]
    # The 12th file that is synced to disk: a checkpoint of the first or second step is half done.
    more = {"name": "killed", "die_at": ["fsync", 12], **PACKED}
    done = subprocess.run([*code, json.dumps(more)], cwd=lab, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert open_run(lab / "killed").config["settings"]["experts"] == "packed"
    run_lab.go_on(lab, "killed")
    assert run_lab.same_bits(lab / "killed" / "adapter", whole / "adapter")


def test_a_run_keeps_what_it_began_with_though_memory_would_decide_otherwise(lab, whole):
    run = lab / "again"
    shutil.copytree(whole, run)
    for folder in ("checkpoints/step-000003", "checkpoints/step-000002", "adapter"):
        shutil.rmtree(run / folder)
    (run / "outcome.json").unlink()
    run_lab.go_on(lab, "again")
    assert open_run(run).config["settings"]["experts"] == "packed"
    assert run_lab.same_bits(run / "adapter", whole / "adapter")
    other = run_lab.settings(lab, "again", **PLAIN | {"resume": str(run), "max_steps": 4})
    with pytest.raises(ConfigError, match="experts was packed and is dequantized now"):
        run_lab.train(other, explicit={"experts", "max_steps"})


def test_auto_is_recorded_as_what_it_was_and_runs_from_before_the_setting_were_dequantised(lab):
    run = run_lab.run(lab, "auto", **SHORT | {"max_steps": 1}).run
    config = json.loads((run / "config.json").read_text())
    assert config["settings"].pop("experts") == "dequantized"
    (run / "config.json").write_text(json.dumps(config))
    run_lab.go_on(lab, "auto", max_steps=2)
    assert open_run(run).config["settings"]["experts"] == "dequantized"


def test_a_dry_run_says_how_the_experts_of_the_20b_would_be_held(lab, monkeypatch):
    # 1 prompt, 4 completions of 206 tokens: 41.83 + 0.33 + 0.03 GB, or 13.76 + 1.59 of one layer
    settings = run_lab.settings(lab, "dry", model="openai/gpt-oss-20b", dtype="bfloat16")
    said = []
    for free in (43, 24):
        monkeypatch.setattr(
            "gptoss_tools.models.experts.available_bytes", lambda device, free=free: free * 10**9
        )
        found = plan(settings)
        said.append((found["experts"], round(found["memory_bytes"] / 1e9, 1)))
    assert said == [("dequantized", 42.2), ("packed", 15.7)]


def test_nothing_but_the_adapter_is_saved_and_it_fits_either_base(lab, whole):
    stored = list(whole.rglob("*.safetensors"))
    assert len(stored) == 4  # the adapter, and one in each of three checkpoints
    for path in stored:
        with safe_open(path, framework="pt") as file:
            assert all("lora_" in name for name in file.keys())  # noqa: SIM118
    ids = torch.arange(9)[None]
    logits = []
    for how in ("packed", "dequantized"):
        model = load_with_adapter(None, whole / "adapter", device="cpu", experts=how)
        assert held_as(model) == how
        with torch.no_grad():
            logits.append(model(ids).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora_target_modules": ["experts"]}, "lora_target_modules holds `experts`"),
        ({"adapter": "none"}, "the whole model learns"),
        ({"adapter": "mixlora"}, "form `shared`"),
    ],
)
def test_what_packed_experts_cannot_do_is_refused_before_anything_is_written(lab, options, reason):
    with pytest.raises(ConfigError, match=f"cannot stay packed in MXFP4: .*{reason}"):
        run_lab.run(lab, "refused", **PACKED, **options)
    assert not (lab / "refused").exists()
