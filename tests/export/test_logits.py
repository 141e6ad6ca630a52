"""An export says how far its logits lie from base + adapter unmerged, where that is affordable."""

from __future__ import annotations

import json
import math

import pytest
import torch
from export_lab import tensors
from peft import PeftModel

from gptoss_tools.chat.harmony import render
from gptoss_tools.export import finish, logits
from gptoss_tools.export.bf16 import export_bf16
from gptoss_tools.export.experts import parameters_of
from gptoss_tools.export.merge import export_mxfp4
from gptoss_tools.export.safetensors_io import open_checkpoint
from gptoss_tools.models.loading import load_model, load_tokenizer


def test_the_gap_is_the_largest_over_all_prompts_positions_and_tokens(base, adapter, tmp_path):
    gap = export_mxfp4(adapter, base, tmp_path / "out").logits
    tokenizer, export = load_tokenizer(base), load_model(tmp_path / "out", dtype="float32")
    plain = load_model(base, dtype="float32")
    unmerged = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(adapter))
    rounding = effect = positions = 0
    for text in logits._PROMPTS:
        prompt = render([{"role": "user", "content": text}], date="2026-01-01")
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.inference_mode():
            whole = unmerged(ids).logits
            rounding = max(rounding, float((export(ids).logits - whole).abs().max()))
            effect = max(effect, float((plain(ids).logits - whole).abs().max()))
        positions += ids.shape[1]
    assert (gap.rounding, gap.adapter, gap.positions) == (rounding, effect, positions)
    assert 0 < gap.rounding < gap.adapter
    assert f"{rounding:.3g}" in str(gap) and f"{effect:.3g}" in str(gap)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["logits"]["rounding"] == rounding


def test_an_adapter_that_changes_nothing_has_no_gap_to_its_export(base, make_adapter, tmp_path):
    nothing = make_adapter(tmp_path / "nothing", size=0.0)
    gap = export_bf16(nothing, base, tmp_path / "out").logits
    assert (gap.rounding, gap.adapter) == (0.0, 0.0)


def test_a_large_model_is_not_loaded_and_a_sentence_says_so(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "LARGEST_COMPARED", 1000)
    monkeypatch.setattr(logits, "load_model", None)
    monkeypatch.setattr(logits, "load_with_adapter", None)
    gap = export_mxfp4(adapter, base, tmp_path / "out").logits
    assert gap.rounding is None and "billion parameters" in gap.skipped
    assert str(gap).startswith("logits not compared: the model has 0.0 billion")


def test_a_machine_without_the_memory_is_said(base, adapter, tmp_path, monkeypatch):
    from gptoss_tools.models import machine

    monkeypatch.setattr(machine, "available_bytes", lambda device: 10)
    gap = export_mxfp4(adapter, base, tmp_path / "out").logits
    assert gap.rounding is None and "GB free" in gap.skipped


def test_a_dry_run_loads_nothing(base, adapter, tmp_path):
    assert export_mxfp4(adapter, base, tmp_path / "out", dry_run=True).logits is None


def test_packed_weights_are_counted_one_by_one(base, adapter, tmp_path):
    export_bf16(adapter, base, tmp_path / "out")
    counted = sum(math.prod(value.shape) for value in tensors(tmp_path / "out").values())
    assert parameters_of(open_checkpoint(base)) == counted
    assert parameters_of(open_checkpoint(tmp_path / "out")) == counted
    assert counted == pytest.approx(sum(p.numel() for p in load_model(base).parameters()))
