"""Adapters of other chat models leave merged, or alone; what only gpt-oss has is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import chat_lab
from gptoss_tools.errors import ConfigError
from gptoss_tools.export.formats import export
from gptoss_tools.export.verify import verify_export
from gptoss_tools.models.loading import load_model, load_with_adapter


@pytest.fixture(scope="module", params=["llama", "qwen"])
def base(request, tmp_path_factory) -> Path:
    return chat_lab.furnish(tmp_path_factory.mktemp("export") / request.param, request.param)


@pytest.fixture(scope="module")
def adapter(base) -> Path:
    """LoRA on every linear layer, the MLP's included."""
    model = get_peft_model(
        load_model(base), LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    model.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 30).unsqueeze(0)).logits


def test_a_merged_model_says_what_base_and_adapter_say(base, adapter, tmp_path):
    out = tmp_path / "merged"
    report = export("merged", adapter, base, out)
    # q, k, v, o, gate, up and down of two layers
    assert len(report.tensors) == 14 and report.kept > 0.999
    assert report.logits is not None and report.logits.rounding < 1e-4 < report.logits.adapter
    unmerged = logits(load_with_adapter(base, adapter))
    assert (unmerged - logits(load_model(base))).abs().max() > 0.01
    torch.testing.assert_close(logits(load_model(out)), unmerged, atol=1e-4, rtol=1e-4)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    found = verify_export(out, base)
    assert not found.problems and "forward pass" in dict(found.checks)
    assert "chat template of the model's tokenizer" in (out / "SERVING.md").read_text()


def test_a_changed_byte_of_a_merged_model_is_found(base, adapter, tmp_path):
    out = tmp_path / "merged"
    export("merged", adapter, base, out)
    with (out / "model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        last = file.read(1)
        file.seek(-3, 2)
        file.write(bytes([last[0] ^ 1]))
    assert verify_export(out, base, forward=False).problems


def test_an_adapter_leaves_alone_without_a_gguf(base, adapter, tmp_path):
    out = tmp_path / "alone"
    report = export("adapter", adapter, base, out)
    assert "another family's tensors" in report.warnings[0]
    assert not (out / "adapter.gguf").exists()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        base.name
    )
    again = PeftModel.from_pretrained(load_model(base), str(out))
    torch.testing.assert_close(logits(again), logits(load_with_adapter(base, adapter)))
    assert not verify_export(out, base).problems
    assert "--enable-lora" in (out / "SERVING.md").read_text()


@pytest.mark.parametrize("format", ["mxfp4", "bf16", "gguf"])
def test_formats_that_only_gpt_oss_has_are_refused_with_a_way_out(base, adapter, tmp_path, format):
    with pytest.raises(ConfigError, match=f"--format {format} writes what only") as caught:
        export(format, adapter, base, tmp_path / "out")
    assert "--format adapter" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_merged_is_no_format_of_a_gpt_oss(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    with pytest.raises(ConfigError, match="is a gpt-oss") as caught:
        export("merged", tmp_path, tmp_path, tmp_path / "out")
    assert "--format mxfp4" in caught.value.hint
