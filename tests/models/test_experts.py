"""How experts are held: by the memory there is, as asked, never against what an adapter needs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import GptOssConfig

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.models import experts
from gptoss_tools.models.experts import experts_under, held_as, pin_experts, weigh_experts
from gptoss_tools.models.layout import write_checkpoint
from gptoss_tools.models.loading import load_model, load_with_adapter, read_config
from gptoss_tools.settings import TrainSettings

CPU = torch.device("cpu")


def given(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate(changes)


def twenty() -> GptOssConfig:
    stored: Any = {"quantization_config": dict(mxfp4.QUANTIZATION_CONFIG)}
    return GptOssConfig(num_hidden_layers=24, num_local_experts=32, **stored)


@pytest.fixture
def memory(monkeypatch):
    """Let the machine have so many GB free."""

    def has(gigabytes: float) -> None:
        for module in ("experts", "machine"):
            name = f"gptoss_tools.models.{module}.available_bytes"
            monkeypatch.setattr(name, lambda device: int(gigabytes * 1e9))

    return has


# The 20b in bfloat16: 41.8 GB of weights dequantised, 13.8 packed. Training 5000 tokens takes
# 5000 * 2880 * (2 * 24 + 90) = 2.0 GB of activations and 0.03 of LoRA: 43.8, or 13.8 + 1.6 + 2.0.
@pytest.mark.parametrize(
    ("free", "tokens", "expected"),
    [
        (139.0, 5000, "dequantized"),
        (43.9, 5000, "dequantized"),
        (43.7, 5000, "packed"),
        (17.5, 5000, "packed"),
        # 80,000 tokens, 16 completions of 5000: 31.8 GB of activations, 73.7 in all
        (73.8, 80_000, "dequantized"),
        (73.5, 80_000, "dequantized"),  # room 31.7 and 59.7 GB: not doubled, activations decide
        (48.0, 80_000, "packed"),  # room 6.2 and 34.2 GB
    ],
)
def test_auto_packs_where_it_must_or_where_packing_doubles_the_room(memory, free, tokens, expected):
    memory(free)
    choice = weigh_experts(
        "auto", twenty(), CPU, torch.bfloat16, obstacle=None, for_training=True, tokens=tokens
    )
    assert choice.held == expected
    assert bool(choice.note) == (expected == "packed")


def test_the_decision_is_pinned_in_the_settings_and_said(memory):
    memory(24)
    settings, notes = pin_experts(given(dtype="bfloat16"), twenty(), CPU, tokens=5000)
    assert settings.experts == "packed"
    assert notes == [
        "experts stay packed in MXFP4: dequantised, training takes about 43.8 GB, and cpu has "
        "24.0 GB free"
    ]
    memory(139)
    again, notes = pin_experts(settings, twenty(), CPU, tokens=5000)
    assert again.experts == "packed" and notes == []
    plain, notes = pin_experts(given(dtype="bfloat16"), twenty(), CPU, tokens=5000)
    assert plain.experts == "dequantized" and notes == []


def test_too_little_memory_is_refused_in_the_numbers_of_what_was_chosen(memory):
    memory(16)
    settings = given(dtype="bfloat16")
    with pytest.raises(MachineError, match=r"with packed experts needs about 17\.4 GB"):
        pin_experts(settings, twenty(), CPU, tokens=5000)
    with pytest.raises(MachineError, match=r"43\.8 GB") as raised:
        asked = given(dtype="bfloat16", experts="dequantized")
        pin_experts(asked, twenty(), CPU, tokens=5000)
    assert raised.value.hint == "--experts packed takes less"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": "none"}, "whole model learns"),
        ({"adapter": "mixlora"}, "form `shared`"),
        ({"lora_target_modules": ["experts"]}, "holds `experts`, and PEFT"),
        ({"dtype": "float16"}, "cannot compute in float16"),
        ({"experts_implementation": "eager"}, "eager computes with dequantised"),
    ],
)
def test_what_needs_the_numbers_refuses_packed_experts_and_auto_gives_them(memory, changes, reason):
    memory(1000)
    with pytest.raises(ConfigError, match=f"cannot stay packed.*{reason}") as raised:
        pin_experts(given(experts="packed", **changes), twenty(), CPU, tokens=5000)
    assert raised.value.hint == "--experts dequantized"
    memory(24)
    with pytest.raises(MachineError):  # nothing else would do
        pin_experts(given(**changes), twenty(), CPU, tokens=5000)


def test_a_checkpoint_without_packed_experts_cannot_keep_them(memory):
    memory(1000)
    config = GptOssConfig(num_hidden_layers=24, num_local_experts=32)
    with pytest.raises(ConfigError, match="the model holds none"):
        pin_experts(given(experts="packed"), config, CPU, tokens=5000)


@pytest.mark.parametrize("form", ["parallel", "shared"])
def test_a_mixlora_of_form_parallel_alone_goes_with_packed_experts(memory, form):
    memory(24)
    settings = given(adapter="mixlora", mixlora_form=form, dtype="bfloat16")
    if form == "parallel":
        assert pin_experts(settings, twenty(), CPU, tokens=5000)[0].experts == "packed"
    else:
        with pytest.raises(MachineError):
            pin_experts(settings, twenty(), CPU, tokens=5000)


@pytest.fixture(scope="module")
def folder(random_model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "model"
    return write_checkpoint(random_model, random_model.config, path, tokenizer=tokenizer)


def test_auto_leaves_a_model_dequantised_whose_activations_are_what_does_not_fit(memory, folder):
    config: Any = read_config(folder)
    memory(0.1)
    choice = weigh_experts(
        "auto", config, CPU, torch.float32, obstacle=None, for_training=True, tokens=80_000
    )
    assert choice.bytes_needed > 0.1e9 and choice.held == "dequantized"


def test_a_model_is_loaded_as_asked_with_the_same_logits(folder, memory):
    ids = torch.arange(12)[None]
    models = {how: load_model(folder, device="cpu", experts=how) for how in ("auto", "packed")}
    assert {how: held_as(model) for how, model in models.items()} == {
        "auto": "dequantized",
        "packed": "packed",
    }
    with torch.no_grad():
        assert torch.equal(models["auto"](ids).logits, models["packed"](ids).logits)
    small, large = (sum(p.nbytes for p in models[how].parameters()) for how in ("packed", "auto"))
    assert small < 0.7 * large
    memory((small + large) / 2 / 1e9)
    assert held_as(load_model(folder, device="cpu", experts="auto", for_training=False)) == "packed"


def test_a_saved_adapter_on_experts_gets_dequantised_ones(folder, tmp_path, memory):
    for name, config in {
        "attention": {"peft_type": "LORA", "target_parameters": None},
        "experts": {"peft_type": "LORA", "target_parameters": ["mlp.experts.down_proj"]},
        "shared": {"peft_type": "MIXLORA"},
        "parallel": {"peft_type": "MIXLORA", "form": "parallel"},
    }.items():
        (tmp_path / name).mkdir()
        text = json.dumps({"base_model_name_or_path": str(folder), **config})
        (tmp_path / name / "adapter_config.json").write_text(text)
    for name in ("attention", "parallel", "nothing"):
        assert [experts_under(tmp_path / name, how) for how in ("auto", "packed")] == [
            "auto",
            "packed",
        ]
    for name in ("experts", "shared"):
        assert experts_under(tmp_path / name, "auto") == "dequantized"
        with pytest.raises(ConfigError, match=f"adapter .*{name} works on their numbers"):
            load_with_adapter(folder, tmp_path / name, device="cpu", experts="packed")
    assert experts.experts_under(tmp_path / "shared", "dequantized") == "dequantized"
