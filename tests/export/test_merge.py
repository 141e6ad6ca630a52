"""The merged checkpoint is the base, byte for byte, but for what the adapter changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_lab import PROJECTIONS, edit_config, edit_weights, peft_merged, tensors
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import ConfigError, DataError, GptossError, RunFolderError
from gptoss_tools.export import files
from gptoss_tools.export.merge import export_mxfp4, plan_export
from gptoss_tools.export.safetensors_io import open_checkpoint
from gptoss_tools.models.loading import load_model


def assert_equals_peft(base: Path, adapter: Path, out: Path) -> set[str]:
    """Every tensor equals PEFT's merge; returns the names of those that differ from the base."""
    ours, before, theirs = tensors(out), tensors(base), peft_merged(base, adapter)
    packed = {name for name in ours if name.endswith(("_blocks", "_scales"))}
    for name in ours.keys() - packed:
        assert torch.equal(ours[name], theirs[name]), name
    assert all(torch.equal(ours[name], before[name]) for name in packed)
    return {name for name in ours if not torch.equal(ours[name], before[name])}


def untouched_hashes(folder: Path, touched: set[str]) -> dict[str, list[str]]:
    """SHA-256 of every byte range between the touched tensors, and of every other file."""
    found = {}
    refs = open_checkpoint(folder).tensors.values()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        content, at, hashes = path.read_bytes(), 0, []
        holes = sorted((r.offset, r.nbytes) for r in refs if r.path == path and r.name in touched)
        for offset, size in [*holes, (len(content), 0)]:
            hashes.append(hashlib.sha256(content[at:offset]).hexdigest())
            at = offset + size
        found[path.name] = hashes
    return found


def test_every_untouched_byte_is_the_base_s(base, adapter, tmp_path):
    out = tmp_path / "out"
    report = export_mxfp4(adapter, base, out)
    touched = {t.name for t in report.tensors}
    assert len(touched) == 3 * len(PROJECTIONS)
    before, after = untouched_hashes(base, touched), untouched_hashes(out, touched)
    ours = {"export.json", "manifest.json", "SERVING.md"}
    assert set(after) == (set(before) - {"README.md"}) | ours
    assert all(before[name] == after[name] for name in after if name not in ours)
    assert [len(h) for n, h in after.items() if n.startswith("model-0")] != [1, 1, 1]
    assert not (out / "original").exists()


def test_the_test_base_has_a_layer_that_spans_shards(base):
    where: dict[str, set[str]] = {}
    for ref in open_checkpoint(base).tensors.values():
        if ref.name.startswith("model.layers."):
            where.setdefault(ref.name.split(".")[2], set()).add(ref.path.name)
    assert max(len(shards) for shards in where.values()) > 1
    assert "model-00000-of-00002.safetensors" in {s for shards in where.values() for s in shards}


def test_merged_tensors_equal_peft_s_float32_merge_rounded_once(base, adapter, tmp_path):
    export_mxfp4(adapter, base, tmp_path / "out")
    assert len(assert_equals_peft(base, adapter, tmp_path / "out")) == 12


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.o_proj": 8}},
        {"alpha_pattern": {"v_proj": 32}},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "router"]},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"lora_bias": True},
        {"target_modules": ["lm_head", "o_proj"]},
    ],
    ids=str,
)  # fmt: skip
def test_other_kinds_of_lora_merge_as_peft_merges_them(settings, base, make_adapter, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", **settings)
    export_mxfp4(adapter, base, tmp_path / "out")
    assert assert_equals_peft(base, adapter, tmp_path / "out")


def test_stock_transformers_gives_the_logits_of_base_and_adapter(base, adapter, tmp_path):
    export_mxfp4(adapter, base, tmp_path / "out")
    ids = torch.arange(40)[None] % 300
    with torch.inference_mode():
        plain = load_model(base)(ids).logits
        unmerged = PeftModel.from_pretrained(load_model(base), str(adapter))(ids).logits
        merged = load_model(tmp_path / "out")(ids).logits
        exact = load_model(base)
        exact = PeftModel.from_pretrained(exact, str(adapter)).merge_and_unload()
        for name, parameter in exact.named_parameters():
            if ".self_attn." in name:
                parameter.copy_(parameter.to(torch.bfloat16))
        rounded = exact(ids).logits
    change = (unmerged - plain).norm()
    # Rounding each merged weight to bfloat16 is the whole difference, and the adapter's own is far
    # larger. How large both are beside the logits depends on the random base, so nothing says so.
    assert torch.equal(merged, rounded)
    assert (merged - unmerged).norm() < 0.1 * change


def test_a_single_file_without_index_is_a_checkpoint_too(base, adapter, tmp_path):
    single = tmp_path / "single"
    single.mkdir()
    save_file(tensors(base), single / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(base / "config.json", single)
    export_mxfp4(adapter, single, tmp_path / "out")
    export_mxfp4(adapter, base, tmp_path / "sharded")
    ours, sharded = tensors(tmp_path / "out"), tensors(tmp_path / "sharded")
    assert all(torch.equal(ours[name], sharded[name]) for name in sharded)


@pytest.mark.parametrize("chunk", [64, 1000])
def test_large_tensors_merge_in_pieces(chunk, base, make_adapter, tmp_path, monkeypatch):
    from gptoss_tools.export import changes

    made = make_adapter(tmp_path / "adapter", use_dora=True)
    monkeypatch.setattr(changes, "CHUNK", chunk)
    export_mxfp4(made, base, tmp_path / "out")
    assert_equals_peft(base, made, tmp_path / "out")


def test_the_report_says_how_much_rounding_keeps(base, make_adapter, tmp_path):
    large = export_mxfp4(make_adapter(tmp_path / "large", size=0.05), base, tmp_path / "a")
    small = export_mxfp4(make_adapter(tmp_path / "small", size=1e-5), base, tmp_path / "b")
    assert large.kept == pytest.approx(1, abs=0.01) and not large.warnings
    assert small.kept < 0.9 and "unmerged" in small.warnings[0]
    assert small.ratio < 1e-3 < large.ratio
    one = large.tensors[0]
    ours, before = tensors(tmp_path / "a")[one.name], tensors(base)[one.name]
    lora = load_file(tmp_path / "large" / "adapter_model.safetensors")
    stem = "base_model.model." + one.name.removesuffix(".weight")
    delta = lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"] * (8 / 4)
    kept = ours.float() - before.float()
    assert one.ratio == pytest.approx(float(delta.norm() / before.float().norm()), rel=1e-4)
    assert one.kept == pytest.approx(float((kept * delta).sum() / (delta * delta).sum()), rel=1e-4)
    assert one.error == pytest.approx(float((kept - delta).norm() / delta.norm()), rel=1e-3)
    record = json.loads((tmp_path / "b" / "export.json").read_text())
    assert record["kept"] == small.kept and len(record["tensors"]) == 12
    weights = (tmp_path / "small" / "adapter_model.safetensors").read_bytes()
    assert record["adapter_sha256"] == hashlib.sha256(weights).hexdigest()
    assert str(tmp_path) not in json.dumps(record)


def test_a_dry_run_measures_and_writes_nothing(base, adapter, tmp_path):
    real = export_mxfp4(adapter, base, tmp_path / "real")
    dry = export_mxfp4(adapter, base, tmp_path / "dry", dry_run=True)
    assert dry.tensors == real.tensors and not dry.written
    assert [p.name for p in tmp_path.iterdir()] == ["real"]


def test_experts_are_refused_with_the_reason_and_the_ways_out(base, expert_adapter, tmp_path):
    with pytest.raises(ConfigError, match="MXFP4") as caught:
        export_mxfp4(expert_adapter, base, tmp_path / "out")
    for way in ("unmerged", "--format bf16", "--requantize-experts"):
        assert way in caught.value.hint
    silent = shutil.copytree(expert_adapter, tmp_path / "adapter")
    edit_config(silent, target_parameters=None)  # the tensors alone must give it away
    with pytest.raises(DataError, match=r"LoRA on 2 parameters .* name 0"):
        export_mxfp4(silent, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("break_it", "error", "words"),
    [
        (lambda a: edit_config(a, peft_type="LOHA"), ConfigError, "only LoRA"),
        (lambda a: edit_config(a, peft_type="MIXLORA"), ConfigError, "depends on the token"),
        (lambda a: edit_config(a, init_lora_weights="pissa"), ConfigError, "pissa"),
        (lambda a: edit_config(a, fan_in_fan_out=True), ConfigError, "transposed"),
        (lambda a: edit_config(a, trainable_token_indices=[1]), ConfigError, "token"),
        (lambda a: edit_config(a, use_dora=True), DataError, "DoRA"),
        (lambda a: edit_config(a, r=8), DataError, "rank 8"),
        (lambda a: (a / "adapter_config.json").unlink(), DataError, "no adapter"),
        (lambda a: (a / "adapter_model.safetensors").unlink(), DataError, "holds no adapter_model"),
        (
            lambda a: edit_weights(a, lambda w: w.pop(f"{Q0}.lora_B.weight")),
            DataError,
            "lacks lora_B",
        ),
        (
            lambda a: edit_weights(a, lambda w: w[f"{Q0}.lora_A.weight"].fill_(float("nan"))),
            DataError,
            "NaN",
        ),
        (
            lambda a: edit_weights(a, lambda w: w.update({f"{Q0}.lora_C.weight": torch.ones(2)})),
            DataError,
            "lora_C",
        ),
        (
            lambda a: edit_weights(
                a, lambda w: w.update({"base_model.model.extra.weight": torch.ones(2)})
            ),
            DataError,
            "does not exist",
        ),
        (
            lambda a: edit_weights(a, lambda w: w.update({f"{Q0}.weight": torch.ones(128, 64)})),
            DataError,
            "in two ways",
        ),
        (
            lambda a: edit_weights(
                a,
                lambda w: w.update(
                    {f"{Q0}.lora_A.weight": torch.ones(4, 32)}
                ),
            ),
            DataError,
            r"shape \(4, 32\)",
        ),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_whole(
    break_it, error, words, base, adapter, tmp_path
):
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    break_it(broken)
    with pytest.raises(error, match=words):
        export_mxfp4(broken, base, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_values_too_large_for_the_stored_type_are_refused(base, adapter, tmp_path):
    huge = shutil.copytree(adapter, tmp_path / "adapter")
    edit_weights(huge, lambda w: [v.fill_(1e20) for v in w.values()])
    with pytest.raises(DataError, match="too large for BF16"):
        export_mxfp4(huge, base, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_the_report_groups_layers_by_module(base, adapter, tmp_path):
    report = export_mxfp4(adapter, base, tmp_path / "out", dry_run=True)
    groups = {one.name: one.ratio for one in report.by_kind()}
    assert set(groups) == {*PROJECTIONS, "all"}
    q = [t for t in report.tensors if "q_proj" in t.name]
    norm = sum(t.delta_norm**2 for t in q) ** 0.5 / sum(t.weight_norm**2 for t in q) ** 0.5
    assert groups["q_proj"] == pytest.approx(norm)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda b: cut(b / "model-00001-of-00002.safetensors", 9000), "cut off"),
        (lambda b: cut(b / "model-00001-of-00002.safetensors", 4), "cut off inside its header"),
        (lambda b: (b / "model-00002-of-00002.safetensors").unlink(), "lacks the shard"),
        (lambda b: (b / "config.json").unlink(), "no config.json"),
        (lambda b: (b / "model.safetensors.index.json").write_text("{}"), "no index"),
        (lambda b: (b / "model.safetensors.index.json").unlink(), "holds neither"),
        (
            lambda b: (b / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"ghost": "model-00000-of-00002.safetensors"}})
            ),
            "lacks the tensor ghost",
        ),
        (
            lambda b: (b / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"w": "../other.safetensors"}})
            ),
            "not a file of the folder itself",
        ),
    ],
)
def test_a_broken_base_is_refused_and_leaves_nothing(break_it, words, base, adapter, tmp_path):
    broken = shutil.copytree(base, tmp_path / "base")
    break_it(broken)
    with pytest.raises(DataError, match=words):
        export_mxfp4(adapter, broken, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_existing_outputs_are_replaced_only_when_told_and_only_ours(base, adapter, tmp_path):
    out = tmp_path / "out"
    export_mxfp4(adapter, base, out)
    with pytest.raises(RunFolderError, match="exists"):
        export_mxfp4(adapter, base, out)
    (out / "stale").write_text("x")
    export_mxfp4(adapter, base, out, overwrite=True)
    assert not (out / "stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(RunFolderError, match="no export of ours"):
        export_mxfp4(adapter, base, mine, overwrite=True)
    for target in (base, base.parent):
        with pytest.raises(RunFolderError, match="reads"):
            export_mxfp4(adapter, base, target, overwrite=True)


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(base, adapter, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files, "_reflink", lambda reader, writer: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(GptossError, match="too small") as caught:
        export_mxfp4(adapter, base, tmp_path / "out")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_copies_are_right_without_help_from_the_kernel(base, adapter, tmp_path, monkeypatch):
    export_mxfp4(adapter, base, tmp_path / "kernel")

    def refuse(*_):
        raise OSError(18, "across devices")

    monkeypatch.setattr(files, "_reflink", lambda reader, writer: False)
    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    report = export_mxfp4(adapter, base, tmp_path / "memory")
    assert report.copied_by == "read and write"
    for path in (tmp_path / "kernel").iterdir():
        assert path.read_bytes() == (tmp_path / "memory" / path.name).read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from gptoss_tools.export.merge import export_mxfp4
seen, at = 0, int(sys.argv[4])
def progress(what, done, total):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
export_mxfp4(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), on_progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 8, 16, 24])
def test_a_killed_export_leaves_nothing_that_looks_finished(at, base, adapter, tmp_path):
    out = tmp_path / "out"
    line = [sys.executable, "-c", KILLED, adapter, base, out, str(at)]
    done = subprocess.run([str(part) for part in line])
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    export_mxfp4(adapter, base, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_equals_peft(base, adapter, out)


def test_an_error_on_the_way_leaves_nothing_at_all(base, adapter, tmp_path):
    def stop(what, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_mxfp4(adapter, base, tmp_path / "out", on_progress=stop)
    assert not list(tmp_path.iterdir())


def test_two_exports_to_one_folder_do_not_meet(base, adapter, tmp_path):
    out = tmp_path / "out"
    with (
        whole_folder(out),
        pytest.raises(RunFolderError, match="another process"),
    ):
        export_mxfp4(adapter, base, out)
    assert out.is_dir()  # the first writer got its name


def test_an_empty_folder_becomes_the_export_and_a_file_cannot_hold_one(base, adapter, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export_mxfp4(adapter, base, out)
    assert (out / "export.json").is_file()
    with pytest.raises(RunFolderError, match=r"new cannot be written: "):
        export_mxfp4(adapter, base, out / "export.json" / "new")


def test_progress_ends_at_the_total(base, adapter, tmp_path):
    seen: list[tuple[str, int, int]] = []
    plan = plan_export(adapter, base)
    export_mxfp4(adapter, base, tmp_path / "out", on_progress=lambda *told: seen.append(told))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("write", plan.bytes_total, plan.bytes_total)
    seen.clear()
    report = export_mxfp4(
        adapter, base, tmp_path / "dry", dry_run=True, on_progress=lambda *t: seen.append(t)
    )
    assert seen[-1] == ("merge", report.bytes_rewritten, report.bytes_rewritten)
