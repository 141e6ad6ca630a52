"""The bf16 checkpoint holds base + adapter, experts dequantised, as stock transformers reads it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from export_lab import edit_config, edit_weights, peft_merged, tensors
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError, GptossError, RunFolderError
from gptoss_tools.export import bf16
from gptoss_tools.export.bf16 import export_bf16
from gptoss_tools.export.formats import export
from gptoss_tools.export.safetensors_io import INDEX
from gptoss_tools.models.loading import load_model

IDS = torch.arange(40)[None] % 300


@pytest.fixture(scope="module")
def out(base, adapter, tmp_path_factory):
    """Attention only: the experts are the base's."""
    folder = tmp_path_factory.mktemp("bf16") / "out"
    export_bf16(adapter, base, folder)
    return folder


@pytest.fixture(scope="module")
def with_experts(base, expert_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bf16") / "experts"
    export_bf16(expert_adapter, base, folder)
    return folder


@pytest.mark.parametrize("kind", ["adapter", "expert_adapter"])
def test_every_tensor_is_peft_s_float32_merge_rounded_once(kind, base, request, tmp_path):
    adapter = request.getfixturevalue(kind)
    export_bf16(adapter, base, tmp_path / "out")
    ours, theirs = tensors(tmp_path / "out"), peft_merged(base, adapter)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, theirs[name]), name


def test_untouched_experts_are_the_values_of_their_four_bits(base, out):
    ours, packed = tensors(out), tensors(base)
    for name in [name for name in ours if mxfp4.is_packed(name)]:
        parts = [packed[part] for part in mxfp4.packed_names(name)]
        exact = mxfp4.decode(*parts, torch.float64)  # [E, out, in]
        # What vLLM's loader does with a checkpoint without MXFP4: to its [E, out, in].
        assert torch.equal(ours[name].permute(0, 2, 1).double(), exact), name


def test_stock_transformers_loads_it_and_gives_the_logits_of_the_merged_model(
    base, expert_adapter, with_experts
):
    model, report = AutoModelForCausalLM.from_pretrained(with_experts, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.bfloat16  # nobody has to say so
    merged = load_model(base, dtype="float32")
    merged.load_state_dict(peft_merged(base, expert_adapter))
    loaded = load_model(with_experts, dtype="float32")
    with torch.inference_mode():
        assert torch.equal(loaded(IDS).logits, merged(IDS).logits)
        plain = load_model(base)
        before = plain(IDS).logits
        unmerged = PeftModel.from_pretrained(plain, str(expert_adapter))(IDS).logits
        # Rounding each merged weight once is all that lies between. The adapter's own effect is
        # far larger, although a router near a tie may choose another expert after rounding.
        assert (loaded(IDS).logits - unmerged).norm() < 0.25 * (unmerged - before).norm()


def test_the_config_is_the_published_one_without_its_quantization(base, out):
    before = json.loads((base / "config.json").read_text())
    after = json.loads((out / "config.json").read_text())
    assert before.pop("quantization_config")["quant_method"] == "mxfp4"
    assert list(after.items()) == list(before.items())
    assert not hasattr(AutoConfig.from_pretrained(out), "quantization_config")
    for path in base.iterdir():
        if path.is_file() and path.name.startswith(("tokenizer", "generation", "chat", "LICENSE")):
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert not (out / "README.md").exists() and not (out / "original").exists()


def test_shards_are_filled_and_numbered_and_the_index_fits_them(
    base, adapter, tmp_path, monkeypatch
):
    # The largest tensor, gate_up_proj, has 4 * 64 * 128 * 2 = 65,536 bytes.
    monkeypatch.setattr(bf16, "LARGEST_SHARD", 100_000)
    export_bf16(adapter, base, tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    count = len(shards)
    assert count > 3
    assert [p.name for p in shards] == [
        f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    ]
    sizes, found = [], {}
    for shard in shards:
        held = load_file(shard)
        sizes.append(sum(value.nbytes for value in held.values()))
        found |= dict.fromkeys(held, shard.name)
    assert found == index["weight_map"] and sum(sizes) == index["metadata"]["total_size"]
    assert max(sizes) <= 100_000
    monkeypatch.undo()
    export_bf16(adapter, base, tmp_path / "one")
    whole = tensors(tmp_path / "one")
    assert all(torch.equal(whole[k], v) for k, v in tensors(tmp_path / "out").items())


def test_a_tensor_larger_than_a_shard_gets_a_shard_of_its_own():
    outputs = [bf16.Output(str(n), "BF16", (n,), n, None) for n in (3, 9, 2, 2, 3)]  # type: ignore[arg-type]
    filled = bf16.split(outputs, 5)
    assert [[one.nbytes for one in shard] for shard in filled] == [[3], [9], [2, 2], [3]]


def test_a_base_without_mxfp4_exports_to_the_same_values_and_not_to_mxfp4(
    base, adapter, out, make_adapter, tmp_path
):
    nothing = make_adapter(tmp_path / "nothing", size=0.0)
    export_bf16(nothing, base, tmp_path / "plain")
    again = tensors(tmp_path / "plain")
    export_bf16(adapter, tmp_path / "plain", tmp_path / "out")
    assert all(torch.equal(v, tensors(out)[k]) for k, v in tensors(tmp_path / "out").items())
    packed = peft_merged(base, nothing)
    assert all(torch.equal(v, packed[k]) for k, v in again.items())
    with pytest.raises(ConfigError, match="no MXFP4 experts"):
        export("mxfp4", adapter, tmp_path / "plain", tmp_path / "no")


def test_rounding_of_experts_is_reported_beside_attention(base, expert_adapter, tmp_path):
    report = export_bf16(expert_adapter, base, tmp_path / "out")
    dry = export_bf16(expert_adapter, base, tmp_path / "dry", dry_run=True)
    assert dry.tensors == report.tensors and not (tmp_path / "dry").exists()
    names = {one.name for one in report.by_kind()}
    assert {"experts.gate_up_proj", "experts.down_proj", "q_proj", "all"} <= names
    one = next(t for t in report.tensors if t.name == "model.layers.1.mlp.experts.down_proj")
    lora = load_file(expert_adapter / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.mlp.experts.lora"  # down_proj: the outer wrapper
    a = lora[f"{stem}_A.weight"].reshape(4, 4, 64)  # [E, r, in]
    b = lora[f"{stem}_B.weight"].reshape(64, 4, 4)  # [out, r, E]
    delta = torch.stack([b[:, :, e] @ a[e] for e in range(4)]) * (8 / 4)
    assert one.delta_norm == pytest.approx(float(delta.norm()), rel=1e-4)
    assert report.bytes_rewritten == sum(
        v.nbytes for k, v in tensors(tmp_path / "out").items() if k in {t.name for t in dry.tensors}
    )


def test_patterns_and_rslora_reach_experts_as_in_peft(base, make_adapter, tmp_path):
    adapter = make_adapter(
        tmp_path / "adapter",
        target_modules=[],
        target_parameters=["experts.down_proj", "model.layers.1.mlp.experts.gate_up_proj"],
        rank_pattern={r"layers\.1\.mlp\.experts\.down_proj": 2},
        alpha_pattern={"gate_up_proj": 32},
        use_rslora=True,
    )
    report = export_bf16(adapter, base, tmp_path / "out")
    assert len(report.tensors) == 4  # down_proj of three layers, gate_up_proj of one
    ours, theirs = tensors(tmp_path / "out"), peft_merged(base, adapter)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


E1 = "base_model.model.model.layers.1.mlp.experts"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda a: edit_config(a, target_parameters=["mlp.experts.down_proj"]), "2 parameters"),
        (lambda a: edit_config(a, r=8), "rank 8"),
        (
            lambda a: edit_weights(a, lambda w: w.pop(f"{E1}.base_layer.lora_A.weight")),
            "lacks lora_A or lora_B",
        ),
        (
            lambda a: edit_weights(
                a, lambda w: [w.pop(f"{E1}.lora_{x}.weight") for x in "AB"]
            ),
            "1 parameters",
        ),
        (
            lambda a: edit_weights(a, lambda w: w[f"{E1}.lora_B.weight"].fill_(float("inf"))),
            "NaN or infinity",
        ),
        (
            lambda a: edit_weights(
                a, lambda w: w.update({f"{E1}.lora_C.weight": torch.ones(2)})
            ),
            "cannot merge",
        ),
        (
            lambda a: edit_weights(
                a, lambda w: w.update({k.replace("s.1.", "s.7."): w.pop(k) for k in list(w)})
            ),
            "which the base lacks|does not exist",
        ),
        (
            lambda a: edit_weights(a, lambda w: [v.fill_(1e20) for v in w.values()]),
            "too large for",
        ),
    ],
)  # fmt: skip
def test_expert_adapters_that_do_not_fit_are_refused_whole(
    break_it, words, base, expert_adapter, tmp_path
):
    broken = shutil.copytree(expert_adapter, tmp_path / "adapter")
    break_it(broken)
    with pytest.raises(DataError, match=words):
        export_bf16(broken, base, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_disk_too_small_is_said_before_the_first_byte(base, adapter, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(GptossError, match="too small"):
        export_bf16(adapter, base, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_stays_unless_told_otherwise(base, adapter, tmp_path):
    export_bf16(adapter, base, tmp_path / "out")
    with pytest.raises(RunFolderError, match="exists"):
        export_bf16(adapter, base, tmp_path / "out")
    export_bf16(adapter, base, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
