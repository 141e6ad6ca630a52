"""verify-export finds what is wrong with an export, and nothing wrong with a good one."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from export_lab import tensors
from safetensors.torch import load_file, save_file

from gptoss_tools.errors import DataError, RunFolderError
from gptoss_tools.export.bf16 import export_bf16
from gptoss_tools.export.formats import FORMATS, export
from gptoss_tools.export.merge import export_mxfp4
from gptoss_tools.export.safetensors_io import INDEX, open_checkpoint
from gptoss_tools.export.verify import verify_export
from gptoss_tools.models import machine
from gptoss_tools.models.shapes import expected_shapes

UNTOUCHED = "model.layers.1.mlp.router.weight"
TOUCHED = "model.layers.1.self_attn.q_proj.weight"
SCALES = "model.layers.1.mlp.experts.down_proj_scales"


@pytest.fixture(scope="module")
def exported(base, adapter, tmp_path_factory):
    """One export of each checkpoint format."""
    home = tmp_path_factory.mktemp("exports")
    export_mxfp4(adapter, base, home / "mxfp4")
    export_bf16(adapter, base, home / "bf16")
    return home


@pytest.fixture
def good(exported, request, tmp_path):
    """A copy to damage, mxfp4 unless parametrised."""
    return shutil.copytree(exported / getattr(request, "param", "mxfp4"), tmp_path / "export")


def flip(folder: Path, name: str, at: int = 7) -> None:
    """Change one byte inside a tensor."""
    ref = open_checkpoint(folder).tensors[name]
    with ref.path.open("r+b") as file:
        file.seek(ref.offset + at)
        byte = file.read(1)[0]
        file.seek(ref.offset + at)
        file.write(bytes([byte ^ 1]))


def put(folder: Path, name: str, value: torch.Tensor) -> None:
    """Overwrite the beginning of a tensor."""
    ref = open_checkpoint(folder).tensors[name]
    with ref.path.open("r+b") as file:
        file.seek(ref.offset)
        file.write(value.contiguous().view(torch.uint8).numpy().tobytes())


def rewrite(folder: Path, name: str, change) -> None:
    """Save a shard again with other tensors, as a careless tool would."""
    path = open_checkpoint(folder).tensors[name].path
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


def edit(path: Path, change) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("format", ["mxfp4", "bf16"])
def test_a_good_export_has_no_problem_with_or_without_its_base(format, exported, base):
    found = verify_export(exported / format, base)
    assert found.problems == [] and found.format == format
    outcomes = dict(found.checks)
    assert "finite logits" in outcomes["forward pass"]
    assert "12 changed" in outcomes["values"] and "equal to the base" in outcomes["values"]
    alone = verify_export(exported / format, forward=False)
    assert alone.problems == [] and dict(alone.checks)["base"].startswith("skipped: ")
    assert "forward pass" not in dict(alone.checks)


def test_experts_that_changed_are_known_to_have_changed(base, expert_adapter, tmp_path):
    export_bf16(expert_adapter, base, tmp_path / "bf16")
    export_mxfp4(expert_adapter, base, tmp_path / "mxfp4", requantize_experts=True)
    for name in ("bf16", "mxfp4"):
        assert verify_export(tmp_path / name, base).problems == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: flip(d, UNTOUCHED), f"{UNTOUCHED} differs from the base"),
        (lambda d: flip(d, TOUCHED), f"{TOUCHED} is not what was exported"),
        (lambda d: put(d, TOUCHED, torch.tensor([float("nan")]).bfloat16()), "holds NaN"),
        (lambda d: put(d, UNTOUCHED, torch.tensor([float("-inf")]).bfloat16()), "or infinity"),
        (lambda d: rewrite(d, UNTOUCHED, lambda h: h.pop(UNTOUCHED)), f"lacks {UNTOUCHED}"),
        (
            lambda d: rewrite(d, UNTOUCHED, lambda h: h.update({UNTOUCHED: torch.ones(64, 4)})),
            r"router.weight has shape \(64, 4\), and config.json asks for \(4, 64\)",
        ),
        (
            lambda d: rewrite(d, UNTOUCHED, lambda h: h.update({UNTOUCHED: h[UNTOUCHED].int()})),
            "is of type I32",
        ),
        (
            lambda d: rewrite(d, UNTOUCHED, lambda h: h.update(extra=torch.ones(3))),
            "extra belongs to no model",
        ),
        (
            lambda d: os.truncate(open_checkpoint(d).tensors[UNTOUCHED].path, 9000),
            "is cut off: 9,000 bytes",
        ),
        (lambda d: open_checkpoint(d).tensors[UNTOUCHED].path.unlink(), "lacks the shard"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer.json differs"),
        (lambda d: (d / "tokenizer_config.json").unlink(), "tokenizer_config.json is missing"),
        (lambda d: (d / "manifest.json").unlink(), "no manifest"),
        (lambda d: (d / "config.json").write_text("["), "config.json cannot be read"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("good", ["mxfp4", "bf16"], indirect=True)
def test_damage_is_found_and_named(damage, words, good, base):
    damage(good)
    found = verify_export(good, base, forward=False)
    assert any(re.search(words, problem) for problem in found.problems), found.problems
    assert not any("skipped" in outcome for _, outcome in found.checks[:1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: put(d, SCALES, torch.tensor([255], dtype=torch.uint8)), "scales that overflow"),
        (
            lambda d: edit(d / "config.json", lambda c: c.pop("quantization_config")),
            "_blocks belongs to no model",
        ),
        (
            lambda d: edit(d / INDEX, lambda c: c["metadata"].update(total_size=7)),
            "bytes of tensors, the shards hold",
        ),
        (lambda d: (d / INDEX).write_text("{}"), "is no index of shards"),
        (
            lambda d: edit(d / "config.json", lambda c: c.pop("hidden_size")),
            "does not say the model's sizes: 'hidden_size'",
        ),
        (
            lambda d: (d / "export.json").write_text(
                (d / "export.json").read_text().replace(TOUCHED, "model.layers.9.x")
            ),
            "says that model.layers.9.x changed, which is not there",
        ),
        (
            lambda d: edit(d / "export.json", lambda c: c.update(format="bf16")),
            "export.json says bf16, and config.json has quantization_config",
        ),
    ],
)  # fmt: skip
def test_damage_that_only_mxfp4_can_have(damage, words, good, base):
    damage(good)
    problems = verify_export(good, base, forward=False).problems
    assert any(words in problem for problem in problems), problems


def test_all_problems_are_listed_not_only_the_first(good, base):
    flip(good, UNTOUCHED)
    put(good, "model.layers.2.self_attn.sinks", torch.tensor([float("nan")]).bfloat16())
    (good / "LICENSE").unlink()
    problems = "\n".join(verify_export(good, base).problems)
    for words in (UNTOUCHED, "sinks holds NaN", "LICENSE is missing"):
        assert words in problems


def test_without_the_base_a_changed_byte_of_an_untouched_tensor_cannot_be_seen(good):
    flip(good, UNTOUCHED)
    assert verify_export(good, forward=False).problems == []
    flip(good, TOUCHED)  # what the adapter changed has its hash in export.json
    assert len(verify_export(good, forward=False).problems) == 1


def test_another_base_is_noticed(good, base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    flip(other, UNTOUCHED)
    assert len(verify_export(good, other, forward=False).problems) == 1


def test_a_forward_pass_that_does_not_fit_is_skipped_with_the_reason(good, monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda device: 10)
    found = verify_export(good)
    assert found.problems == []
    assert dict(found.checks)["forward pass"].startswith("skipped: loading this model needs")


def test_weights_that_overflow_are_found_by_running_them(good):
    # All finite, so only a forward pass can tell: norm weights of 3e38 square to infinity.
    shape = open_checkpoint(good).tensors["model.norm.weight"].shape
    put(good, "model.norm.weight", torch.full(shape, 3e38).bfloat16())
    found = verify_export(good)
    assert found.problems == ["a forward pass gives logits that are NaN or infinite"]


def test_notes_for_people_may_be_edited(good, base):
    (good / "SERVING.md").write_text("mine\n")
    (good / "README.md").write_text("a card\n")
    assert verify_export(good, base, forward=False).problems == []


def test_a_folder_that_is_no_export_is_refused(base, good):
    with pytest.raises(RunFolderError, match="no export"):
        verify_export(base)
    (good / "export.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        verify_export(good)


def test_verifying_changes_nothing_and_its_progress_ends_at_the_total(good, base):
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    seen = []
    verify_export(good, base, on_progress=lambda what, done, total: seen.append((done, total)))
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before
    size = sum(value.nbytes for value in tensors(good).values())
    assert seen[-1] == (size, size)


@pytest.mark.parametrize("format", ["gguf", "adapter"])
def test_the_other_formats_are_verified_too(format, base, adapter, tmp_path):
    pytest.importorskip("gguf")
    assert format in FORMATS
    export(format, adapter, base, tmp_path / "out")
    assert verify_export(tmp_path / "out", base).problems == []
    weights = max((tmp_path / "out").glob("*.[gs]*f*"), key=lambda path: path.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[-100:] = b"\xff" * 100  # NaN in float32 and in bfloat16
    weights.write_bytes(data)
    assert verify_export(tmp_path / "out", base).problems


def test_the_published_table_of_the_20b_has_459_tensors_and_its_bytes():
    config = {
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_local_experts": 32,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 24,
        "vocab_size": 201088,
        "attention_bias": True,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    shapes = expected_shapes(config)
    size = sum(
        torch.Size(shape).numel() * (1 if name.endswith(("_blocks", "_scales")) else 2)
        for name, shape in shapes.items()
    )
    assert (len(shapes), size) == (459, 13_761_264_768)


@pytest.mark.parametrize("name", ["adapter.gguf", "adapter_config.json"])
def test_one_other_byte_beside_the_weights_of_an_adapter_is_found(name, base, adapter, tmp_path):
    pytest.importorskip("gguf")
    export("adapter", adapter, base, tmp_path / "out")
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = verify_export(tmp_path / "out").problems
    assert problem.startswith(f"{name} is not what was exported")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora_alpha": "x"}, "lora_alpha in adapter_config.json is 'x'"),
        ({"lora_alpha": float("nan")}, "lora_alpha in adapter_config.json is nan"),
        ({"r": None}, "r in adapter_config.json is None"),
        ({"rank_pattern": [1]}, "rank_pattern in adapter_config.json holds no patterns"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern in adapter_config.json holds no patterns"),
    ],
)
def test_an_adapter_config_that_holds_no_numbers_is_refused(change, words, base, adapter, tmp_path):
    damaged = shutil.copytree(adapter, tmp_path / "adapter")
    edit(damaged / "adapter_config.json", lambda config: config.update(change))
    with pytest.raises(DataError, match=re.escape(words)):
        export("mxfp4", damaged, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
