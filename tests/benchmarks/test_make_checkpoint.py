"""The synthetic checkpoint has the published layout, and its bytes depend on the seed alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gptoss_tools.core import mxfp4


def test_the_20b_table_is_the_published_one(make_checkpoint):
    table = make_checkpoint.tensor_table(make_checkpoint.config_of("20b"))
    shards = make_checkpoint.cut(table)
    # Counts and bytes of the three published shards, and total_size of their index.
    assert [len(shard) for shard in shards] == [196, 197, 66]
    sizes = [sum(tensor.nbytes for tensor in shard) for shard in shards]
    assert sizes == [4_792_250_240, 4_798_679_872, 4_170_334_656]
    assert sum(sizes) == 13_761_264_768
    assert [s[0].name for s in shards][1:] == [
        "model.layers.18.self_attn.q_proj.weight",
        "model.layers.6.mlp.experts.gate_up_proj_blocks",
    ]


def test_the_files_are_what_the_index_says(synthetic):
    base, _ = synthetic
    index = json.loads((base / "model.safetensors.index.json").read_text())
    tensors = {}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        assert {n for n, p in index["weight_map"].items() if p == path.name} == set(names)
        tensors |= load_file(path)
    assert sum(t.nbytes for t in tensors.values()) == index["metadata"]["total_size"]
    layers = {}
    for name, path in index["weight_map"].items():
        if name.startswith("model.layers."):
            layers.setdefault(name.split(".")[2], set()).add(path)
    assert max(len(paths) for paths in layers.values()) > 1  # a layer spans shards


def test_values_are_those_of_a_plausible_model(synthetic):
    base, _ = synthetic
    tensors = {k: v for p in base.glob("*.safetensors") for k, v in load_file(p).items()}
    q = tensors["model.layers.0.self_attn.q_proj.weight"].float()  # 128 * 64 values
    assert abs(q.mean()) < 0.001 and abs(q.std() - 0.02) < 0.001
    assert abs(tensors["model.norm.weight"].float().mean() - 1) < 0.02
    experts = "model.layers.0.mlp.experts.down_proj"
    scales = tensors[f"{experts}_scales"]
    assert set(scales.unique().tolist()) == {120, 121, 122, 123, 124}
    values = mxfp4.decode(tensors[f"{experts}_blocks"], scales)
    assert values.abs().max() == 6 * 2**-3


def test_bytes_depend_on_seed_and_name_alone(make_checkpoint, synthetic, tmp_path):
    base, _ = synthetic
    again = make_checkpoint.write_checkpoint(tmp_path / "again", "tiny")
    for path in base.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    name = "model.layers.1.self_attn.q_proj.weight"

    def read(folder):
        return {k: v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}[name]

    fewer = make_checkpoint.write_checkpoint(tmp_path / "fewer", "tiny", layers=2)
    other = make_checkpoint.write_checkpoint(tmp_path / "other", "tiny", seed=1)
    assert torch.equal(read(base), read(fewer))
    assert not torch.equal(read(base), read(other))


def test_a_tensor_larger_than_a_piece_is_written_whole(make_checkpoint, tmp_path, monkeypatch):
    tensors = [make_checkpoint.Tensor("lm_head.weight", "BF16", (10, 9))]
    make_checkpoint.write_shard(tmp_path / "a.safetensors", tensors, 0)
    whole = load_file(tmp_path / "a.safetensors")["lm_head.weight"]
    monkeypatch.setattr(make_checkpoint, "PIECE", 64)  # 180 bytes: two pieces of 64, one of 52
    make_checkpoint.write_shard(tmp_path / "b.safetensors", tensors, 0)
    assert torch.equal(load_file(tmp_path / "b.safetensors")["lm_head.weight"], whole)


def test_stock_transformers_and_peft_load_it(synthetic):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = synthetic
    model, report = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    tokens = AutoTokenizer.from_pretrained(base)("load 40 kW", return_tensors="pt").input_ids
    with torch.no_grad():
        plain = model(tokens).logits
        adapted = PeftModel.from_pretrained(model, str(adapter))(tokens).logits
    assert bool(plain.isfinite().all())
    assert 0 < (adapted - plain).abs().max() < plain.abs().max()


@pytest.mark.slow
def test_the_full_tokenizer_has_the_published_ids(script, tmp_path):
    tokenizer = script("synthetic_tokenizer").write_tokenizer(tmp_path, full=True)
    specials = {"<|endoftext|>": 199999, "<|return|>": 200002, "<|call|>": 200012}
    assert {t: tokenizer.convert_tokens_to_ids(t) for t in specials} == specials
    text = "<|start|>user<|message|>Köpenick, 40 kW?\n<|end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
