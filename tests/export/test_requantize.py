"""LoRA on experts packed into MXFP4 again: only when asked for, and with its loss told."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from export_lab import edit_config, edit_weights, peft_merged, tensors
from peft import PeftModel

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.export.formats import export
from gptoss_tools.export.merge import export_mxfp4
from gptoss_tools.models.loading import load_model

SUFFIXES = ("_blocks", "_scales")


@pytest.fixture(scope="module")
def done(base, expert_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("requantize") / "out"
    return export_mxfp4(expert_adapter, base, folder, requantize_experts=True)


def values(held: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """[E, out, in] in float64."""
    return mxfp4.decode(*(held[part] for part in mxfp4.packed_names(name)), torch.float64)


def test_experts_hold_the_nearest_values_to_peft_s_merge(base, expert_adapter, done):
    model = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(expert_adapter))
    merged = model.merge_and_unload().state_dict()
    ours, attention = tensors(done.out), peft_merged(base, expert_adapter)
    for name, value in merged.items():
        if mxfp4.is_packed(name):
            nearest = mxfp4.decode(*mxfp4.pack_parameter(value, "best"), torch.float64)
            assert torch.equal(values(ours, name), nearest), name
        else:
            assert torch.equal(ours[name], attention[name]), name


def test_the_loss_is_told_tensor_by_tensor_and_in_a_warning(base, done):
    before, after = tensors(base), tensors(done.out)
    merged = {one.name: one for one in done.tensors if one.kind == "requantised"}
    assert len(merged) == 6  # two parameters in each of three layers
    for name, one in merged.items():
        kept = values(after, name) - values(before, name)
        # |K|^2 = |D|^2 (2 kept - 1 + error^2), from |K - D|^2 = |K|^2 - 2 <K, D> + |D|^2
        square = one.delta_norm**2 * (2 * one.kept - 1 + one.error**2)
        assert float(kept.square().sum()) == pytest.approx(square, rel=1e-3)
    (warning,) = done.warnings  # attention keeps all, and the experts' loss is told once
    assert "packed into MXFP4 again" in warning
    assert "unmerged" in warning and "bf16" in warning
    record = json.loads((done.out / "export.json").read_text())
    assert record["warnings"] == done.warnings
    assert {"kept", "error", "ratio"} <= record["tensors"][-1].keys()


def test_nothing_but_the_changed_tensors_is_rewritten(base, done):
    before, after = tensors(base), tensors(done.out)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    told = {name for one in done.tensors for name in one.sha256}
    assert changed <= told and {name for name in told if not name.endswith("_scales")} <= changed
    assert (done.out / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_change_of_zero_leaves_every_byte(base, make_adapter, tmp_path):
    adapter = make_adapter(
        tmp_path / "adapter", size=0.0, target_modules=[], target_parameters=["experts.down_proj"]
    )
    report = export_mxfp4(adapter, base, tmp_path / "out", requantize_experts=True)
    before, after = tensors(base), tensors(tmp_path / "out")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert "changes nothing" in report.warnings[0]


def test_small_changes_of_experts_are_all_but_lost_and_large_ones_are_not(
    base, make_adapter, tmp_path
):
    kept = {}
    for size in (0.001, 0.5):
        adapter = make_adapter(
            tmp_path / f"adapter-{size}",
            size=size,
            target_modules=[],
            target_parameters=["experts.gate_up_proj"],
        )
        report = export_mxfp4(
            adapter, base, tmp_path / "out", requantize_experts=True, dry_run=True
        )
        kept[size] = report.ratio, report.kept
    assert kept[0.001][0] < 0.01 and kept[0.001][1] < 0.1
    assert kept[0.5][0] > 0.5 and kept[0.5][1] > 0.9


def test_stock_transformers_gives_the_logits_of_the_packed_values(base, expert_adapter, done):
    ours, ids = tensors(done.out), torch.arange(40)[None] % 300
    expected = load_model(base, dtype="float32")
    state = peft_merged(base, expert_adapter)
    for name in state:
        if mxfp4.is_packed(name):
            state[name] = values(ours, name).transpose(1, 2)
    expected.load_state_dict(state)
    with torch.inference_mode():
        assert torch.equal(load_model(done.out, dtype="float32")(ids).logits, expected(ids).logits)


def test_without_the_flag_and_for_other_formats_it_is_refused(base, expert_adapter, tmp_path):
    with pytest.raises(ConfigError, match="four-bit experts cannot hold it"):
        export("mxfp4", expert_adapter, base, tmp_path / "out")
    with pytest.raises(ConfigError, match="no meaning for bf16"):
        export("bf16", expert_adapter, base, tmp_path / "out", requantize_experts=True)
    with pytest.raises(ConfigError, match="'int3' is unknown"):
        export("int3", expert_adapter, base, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_values_too_large_are_refused(base, make_adapter, tmp_path):
    adapter = make_adapter(
        tmp_path / "adapter",
        size=1e36,
        target_modules=[],
        target_parameters=["experts.down_proj"],
    )
    edit_config(adapter, lora_alpha=1e9)
    with pytest.raises(DataError, match=r"merging .*down_proj gives"):
        export_mxfp4(adapter, base, tmp_path / "out", requantize_experts=True)
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_attention_part_is_zero_still_changes_something(
    base, expert_adapter, tmp_path
):
    half = shutil.copytree(expert_adapter, tmp_path / "adapter")
    edit_weights(half, lambda w: [v.zero_() for k, v in w.items() if "self_attn" in k])
    report = export_mxfp4(half, base, tmp_path / "out", requantize_experts=True, dry_run=True)
    assert not any("changes nothing" in warning for warning in report.warnings)
    assert report.ratio > 0 and len(report.warnings) == 1
