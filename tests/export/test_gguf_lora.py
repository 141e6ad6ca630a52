"""An adapter leaves as its PEFT files and as a GGUF LoRA that means the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf_reading import read_gguf
from peft import PeftModel
from safetensors.torch import load_file

from gptoss_tools.core.mxfp4 import PACKED
from gptoss_tools.errors import DataError, RunFolderError
from gptoss_tools.export.gguf_layout import Dimensions, read_config
from gptoss_tools.export.gguf_lora import export_adapter
from gptoss_tools.models.loading import load_model


def products(folder) -> dict[str, np.ndarray]:
    """alpha / r * B @ A of each pair, by llama.cpp's rule (`get_scale` in llama-adapter.h)."""
    keys, tensors = read_gguf(folder / "adapter.gguf")
    found = {}
    for name in {name.rsplit(".", 1)[0] for name in tensors}:
        a, b = (tensors[f"{name}.{part}"].floats() for part in ("lora_a", "lora_b"))
        found[name] = keys["adapter.lora.alpha"] / b.shape[-1] * (b @ a)
    return found


def expected(base, adapter) -> dict[str, np.ndarray]:
    """What PEFT adds to each parameter, by GGUF name, experts as [E, out, in]."""
    plain = load_model(base, dtype="float32").state_dict()
    model = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(adapter))
    merged = model.merge_and_unload().state_dict()
    found = {}
    for tensor in Dimensions.from_config(read_config(base)).table():
        delta = (merged[tensor.source] - plain[tensor.source]).numpy()
        if not delta.any():
            continue
        if tensor.role == "mxfp4":
            first, step = tensor.part
            delta = delta.swapaxes(1, 2)[:, first::step]
        found[tensor.name] = delta
    return found


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert np.allclose(ours[name], value, rtol=0, atol=2e-6), name


def test_the_folder_is_a_peft_adapter_and_a_gguf(base, adapter, tmp_path):
    out = tmp_path / "out"
    report = export_adapter(adapter, base, out)
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter.gguf",
        "SERVING.md",
        "export.json",
        "manifest.json",
    }
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, out))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model = PeftModel.from_pretrained(load_model(base), str(out))
    reference = PeftModel.from_pretrained(load_model(base), str(adapter))
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert report.tensors == [] and report.warnings == [] and report.format == "adapter"


def test_plain_lora_keeps_its_bits_under_llama_cpp_s_names(base, adapter, tmp_path):
    export_adapter(adapter, base, tmp_path / "out")
    keys, tensors = read_gguf(tmp_path / "out" / "adapter.gguf")
    stored = load_file(adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.2.self_attn.o_proj"
    for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        tensor = tensors[f"blk.2.attn_output.weight.{ours}"]
        assert np.array_equal(tensor.floats(), stored[f"{prefix}.{theirs}.weight"].numpy())
    assert len(tensors) == 3 * 4 * 2
    wanted = {"general.architecture": "gpt-oss", "general.type": "adapter", "adapter.type": "lora"}
    assert {key: keys[key] for key in wanted} == wanted
    assert keys["adapter.lora.alpha"] == 8.0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"lora_alpha": 0},
        {"alpha_pattern": {"v_proj": 32}},
        {"rank_pattern": {"q_proj": 2}},
        {"target_modules": ["lm_head", "o_proj"]},
        {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]},
        {"target_modules": ["q_proj"], "target_parameters": [f"mlp.experts.{n}" for n in PACKED]},
    ],
    ids=str,
)
def test_every_kind_of_lora_means_what_peft_means(settings, base, make_adapter, tmp_path):
    made = make_adapter(tmp_path / "adapter", **settings)
    export_adapter(made, base, tmp_path / "out")
    wanted = expected(base, made)
    ours = products(tmp_path / "out")
    if settings.get("lora_alpha") == 0:
        assert not wanted and ours and not any(value.any() for value in ours.values())
    else:
        assert_same(ours, wanted)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "trained bias"),
        ({"modules_to_save": ["lm_head"]}, "trained weight"),
    ],
    ids=str,
)
def test_what_llama_cpp_has_no_words_for_is_said(settings, reason, base, make_adapter, tmp_path):
    made = make_adapter(tmp_path / "adapter", **settings)
    report = export_adapter(made, base, tmp_path / "out")
    (warning,) = report.warnings
    assert reason in warning and "adapter.gguf" in warning
    assert not (tmp_path / "out" / "adapter.gguf").exists()
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["warnings"] == [warning]


def test_no_path_of_this_machine_leaves(base, adapter, tmp_path):
    assert str(base) in (adapter / "adapter_config.json").read_text()
    export_adapter(adapter, base, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    for path in (tmp_path / "out").iterdir():
        assert str(base.parent).encode() not in path.read_bytes(), path.name


def test_a_dry_run_writes_nothing_and_an_existing_folder_stays(base, adapter, tmp_path):
    report = export_adapter(adapter, base, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists() and not report.written
    export_adapter(adapter, base, tmp_path / "out")
    with pytest.raises(RunFolderError, match="exists"):
        export_adapter(adapter, base, tmp_path / "out")
    export_adapter(adapter, base, tmp_path / "out", overwrite=True)


def test_the_adapter_of_another_model_is_refused(base, adapter, tmp_path):
    other = tmp_path / "adapter"
    other.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.2", "layers.7"): value for name, value in tensors.items()}
    from safetensors.torch import save_file

    save_file(renamed, other / "adapter_model.safetensors")
    (other / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    with pytest.raises(DataError, match=r"layers\.7"):
        export_adapter(other, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
