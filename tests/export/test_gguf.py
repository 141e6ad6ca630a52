"""One GGUF holds what the merged checkpoint holds, whole or not at all, in little memory."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from gguf_reading import read_gguf
from safetensors.torch import load_file, save_file

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError, GptossError, RunFolderError
from gptoss_tools.export import gguf as export_module
from gptoss_tools.export.gguf import export_gguf, verify_gguf
from gptoss_tools.export.gguf_blocks import unpack
from gptoss_tools.export.gguf_layout import Dimensions
from gptoss_tools.export.gguf_tensors import plan_tensors
from gptoss_tools.export.merge import export_mxfp4
from gptoss_tools.export.rounding import Sums
from gptoss_tools.export.safetensors_io import open_checkpoint

LAYER = "model.layers.1"


@pytest.fixture(scope="module")
def written(base, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf") / "first"
    report = export_gguf(adapter, base, folder)
    return report, folder, *read_gguf(folder / "model.gguf")


def checkpoint(folder):
    return {k: v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


@pytest.fixture(scope="module")
def merged(base, adapter, tmp_path_factory):
    """The mxfp4 export, to compare with: what it must hold is shown in test_merge."""
    folder = tmp_path_factory.mktemp("mxfp4") / "out"
    export_mxfp4(adapter, base, folder)
    return checkpoint(folder)


def test_the_folder_holds_one_gguf_and_what_serves_it(written):
    report, folder, *_ = written
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.gguf", "Modelfile", "SERVING.md", "export.json", "manifest.json"}
    assert report.bytes_total == (folder / "model.gguf").stat().st_size
    record = json.loads((folder / "export.json").read_text())
    assert record["format"] == "gguf" and len(record["tensors"]) == 3 * 4


def test_it_verifies(written, base):
    assert verify_gguf(written[1] / "model.gguf", base) == []
    assert verify_gguf(written[1] / "model.gguf", None) == []


def test_dense_weights_are_the_merged_checkpoint_s(written, merged):
    tensors = written[3]
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.attn_norm.weight": f"{LAYER}.input_layernorm.weight",
        "blk.1.attn_q.weight": f"{LAYER}.self_attn.q_proj.weight",
        "blk.1.attn_k.bias": f"{LAYER}.self_attn.k_proj.bias",
        "blk.1.attn_v.weight": f"{LAYER}.self_attn.v_proj.weight",
        "blk.1.attn_output.weight": f"{LAYER}.self_attn.o_proj.weight",
        "blk.1.attn_sinks.weight": f"{LAYER}.self_attn.sinks",
        "blk.1.post_attention_norm.weight": f"{LAYER}.post_attention_layernorm.weight",
        "blk.1.ffn_gate_inp.weight": f"{LAYER}.mlp.router.weight",
        "blk.1.ffn_gate_inp.bias": f"{LAYER}.mlp.router.bias",
        "blk.1.ffn_down_exps.bias": f"{LAYER}.mlp.experts.down_proj_bias",
    }
    for ours, theirs in pairs.items():
        assert np.array_equal(tensors[ours].floats(), merged[theirs].float().numpy()), ours
    big = {"token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output"}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight").split(".")[-1]
        if "_exps.weight" not in name:
            assert tensor.kind == ("BF16" if stem in big else "F32"), name


def test_gate_and_up_are_taken_apart_and_keep_their_values(written, merged):
    tensors = written[3]
    values = mxfp4.decode(
        merged[f"{LAYER}.mlp.experts.gate_up_proj_blocks"],
        merged[f"{LAYER}.mlp.experts.gate_up_proj_scales"],
    )
    bias = merged[f"{LAYER}.mlp.experts.gate_up_proj_bias"].float().numpy()
    for name, first in (("gate", 0), ("up", 1)):
        tensor = tensors[f"blk.1.ffn_{name}_exps.weight"]
        assert (tensor.kind, tensor.shape) == ("MXFP4", (4, 64, 64))
        rows = np.frombuffer(tensor.data, np.uint8).reshape(4, 64, 34)  # 2 blocks of 17 bytes
        blocks, scales = (torch.from_numpy(part.copy()) for part in unpack(rows))
        assert torch.equal(mxfp4.decode(blocks, scales), values[:, first::2])
        ours = tensors[f"blk.1.ffn_{name}_exps.bias"].floats()
        assert np.array_equal(ours, bias[:, first::2])


def test_keys_describe_the_model(written, base):
    _, _, keys, tensors = written
    config = json.loads((base / "config.json").read_text())
    expected = {
        "general.architecture": "gpt-oss",
        "general.type": "model",
        "general.name": "first",
        "general.file_type": 38,  # MXFP4 experts
        "gpt-oss.block_count": 3,
        "gpt-oss.context_length": 131072,
        "gpt-oss.embedding_length": 64,
        "gpt-oss.expert_feed_forward_length": 64,
        "gpt-oss.attention.head_count": 4,
        "gpt-oss.attention.head_count_kv": 2,
        "gpt-oss.attention.key_length": 32,
        "gpt-oss.attention.sliding_window": 128,
        "gpt-oss.expert_count": 4,
        "gpt-oss.expert_used_count": 2,
        "gpt-oss.rope.freq_base": config["rope_theta"],
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": config["rope_scaling"]["factor"],
        "gpt-oss.rope.scaling.original_context_length": 4096,
        "general.sampling.temp": 1.0,
        "general.sampling.top_k": 0,
    }
    assert {key: keys.get(key) for key in expected} == expected
    assert len(tensors) == 3 + 3 * 19  # three outside the layers


def test_float32_attention_is_the_merge_without_rounding(base, adapter, tmp_path):
    from peft import PeftModel

    from gptoss_tools.models.loading import load_model

    report = export_gguf(adapter, base, tmp_path / "out", dtype="f32")
    _, tensors = read_gguf(tmp_path / "out" / "model.gguf")
    model = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(adapter))
    exact = model.merge_and_unload().state_dict()
    for ours, theirs in (("attn_q", "q_proj"), ("attn_output", "o_proj")):
        tensor = tensors[f"blk.2.{ours}.weight"]
        assert tensor.kind == "F32"
        expected = exact[f"model.layers.2.self_attn.{theirs}.weight"].numpy()
        assert np.allclose(tensor.floats(), expected, rtol=0, atol=1e-7)
        rounded = torch.from_numpy(expected).bfloat16().float().numpy()
        assert not np.array_equal(tensor.floats(), rounded)
    assert tensors["output.weight"].kind == "BF16"
    assert report.kept == 1.0 and report.warnings == []
    assert verify_gguf(tmp_path / "out" / "model.gguf", base) == []


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_other_trained_weights_come_along(dtype, base, make_adapter, tmp_path):
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "router"]}
    made = make_adapter(tmp_path / "adapter", **settings)
    export_mxfp4(made, base, tmp_path / "mxfp4")
    export_gguf(made, base, tmp_path / "gguf", dtype=dtype)
    _, tensors = read_gguf(tmp_path / "gguf" / "model.gguf")
    ours, theirs = tensors["output.weight"], checkpoint(tmp_path / "mxfp4")["lm_head.weight"]
    assert ours.kind == {"bf16": "BF16", "f32": "F32"}[dtype]
    assert np.allclose(ours.floats(), theirs.float().numpy(), rtol=2**-8, atol=0)
    assert np.array_equal(ours.floats(), theirs.float().numpy()) == (dtype == "bf16")
    assert verify_gguf(tmp_path / "gguf" / "model.gguf", base) == []


def test_a_dry_run_measures_the_same_and_writes_nothing(written, base, adapter, tmp_path):
    report = export_gguf(adapter, base, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists() and not report.written
    assert (report.ratio, report.kept) == (written[0].ratio, written[0].kept)
    assert report.tensors == written[0].tensors


def test_progress_ends_at_the_whole(base, adapter, tmp_path):
    seen = []
    export_gguf(adapter, base, tmp_path / "out", on_progress=lambda *step: seen.append(step))
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)
    assert seen[-1][1] == seen[-1][2]


def test_lora_on_experts_is_refused_with_the_ways_out(base, make_adapter, tmp_path):
    made = make_adapter(
        tmp_path / "adapter", target_modules=[], target_parameters=["mlp.experts.down_proj"]
    )
    with pytest.raises(ConfigError, match="four-bit experts cannot hold it") as caught:
        export_gguf(made, base, tmp_path / "out")
    assert "unmerged" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept_unless_told_otherwise(base, adapter, tmp_path):
    out = tmp_path / "out"
    export_gguf(adapter, base, out)
    with pytest.raises(RunFolderError, match="exists"):
        export_gguf(adapter, base, out)
    export_gguf(adapter, base, out, dtype="f32", overwrite=True)
    assert read_gguf(out / "model.gguf")[1]["blk.0.attn_q.weight"].kind == "F32"


def spoil(base, folder, **changes):
    """A copy of the base as a single file, with tensors replaced or (None) removed."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    tensors = checkpoint(base) | {k.replace("/", "."): v for k, v in changes.items()}
    kept = {k: v for k, v in tensors.items() if v is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model/norm/weight": None}, r"model\.norm\.weight"),
        ({"model/norm/weight": torch.zeros(3)}, r"model\.norm\.weight"),
        ({"model/extra": torch.zeros(3)}, r"model\.extra"),
        ({"lm_head/weight": torch.zeros(400, 64, dtype=torch.float64)}, "F64"),
    ],
    ids=["missing", "shape", "unknown", "type"],
)
def test_a_base_that_does_not_fit_is_named_and_nothing_is_left(
    change, message, base, adapter, tmp_path
):
    if "lm_head/weight" in change:
        rows = json.loads((base / "config.json").read_text())["vocab_size"]
        change = {"lm_head/weight": torch.zeros(rows, 64, dtype=torch.float64)}
    with pytest.raises(DataError, match=message):
        export_gguf(adapter, spoil(base, tmp_path / "base", **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "in turn"),
        ({"swiglu_limit": 5.0}, "swiglu_limit"),
        ({"tie_word_embeddings": True}, "output matrix"),
        ({"model_type": "llama"}, "no gpt-oss"),
        ({"num_local_experts": "four"}, "num_local_experts"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_llama_cpp_cannot_compute_is_refused(change, message, base):
    config = json.loads((base / "config.json").read_text())
    assert len(Dimensions.from_config(config).table()) == 60
    with pytest.raises(DataError, match=message):
        Dimensions.from_config(config | change)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7},
    ],
    ids=str,
)
def test_a_rope_that_a_gguf_cannot_describe_is_refused(rope, base, adapter, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text()) | {"rope_scaling": rope}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="rope"):
        export_gguf(adapter, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_in_the_words_of_transformers_5_gives_the_same_keys(base, adapter, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    export_gguf(adapter, base, tmp_path / "one" / "out")
    export_gguf(adapter, folder, tmp_path / "two" / "out")
    one, two = (read_gguf(tmp_path / name / "out" / "model.gguf") for name in ("one", "two"))
    assert one == two


def test_a_full_disk_leaves_nothing(base, adapter, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(GptossError, match="too small"):
        export_gguf(adapter, base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_is_refused(base, adapter, tmp_path):
    with pytest.raises(ConfigError, match="gguf_dtype"):
        export_gguf(adapter, base, tmp_path / "out", dtype="q4")


def test_no_more_than_one_expert_s_matrix_is_held_at_a_time(base):
    config = json.loads((base / "config.json").read_text())
    for planned in plan_tensors(
        Dimensions.from_config(config), open_checkpoint(base), {}, exact=False
    ):
        sizes = [piece.nbytes for piece in planned.pieces(Sums())]
        assert sum(sizes) == planned.nbytes
        if planned.tensor.role == "mxfp4":
            assert sizes == [64 * 64 // 32 * 17] * 4  # 64 x 64 values, 4 experts
