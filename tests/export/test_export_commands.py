"""`gptoss export` and `gptoss verify-export` as users call them, on sound and on broken input."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_lab import edit_config, edit_weights, tensors
from safetensors.torch import load_file, save_file

from gptoss_tools.core.publish import publish
from gptoss_tools.export.safetensors_io import open_checkpoint

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def run(adapter, base, tmp_path):
    """A run with a final adapter, a best one, and a checkpoint."""
    home = tmp_path / "runs" / "first"
    home.mkdir(parents=True)
    config = {"settings": {"model": str(base), "lora_r": 4, "max_steps": 3}}
    (home / "config.json").write_text(json.dumps(config))
    for name, step in (("adapter", 3), ("adapter-best", 2), ("checkpoints/step-000002", 2)):
        (home / name).parent.mkdir(exist_ok=True)
        publish(shutil.copytree(adapter, tmp_path / "staged"), home / name, step=step)
    return home


@pytest.mark.parametrize("target", ["", "adapter", "adapter-best", "checkpoints/step-000002"])
def test_a_run_a_checkpoint_and_its_adapters_are_targets(target, run, base, gptoss):
    code, out, err = gptoss("export", run / target, "--base", base, "--json")
    assert code == 0, err
    assert json.loads(out)["format"] == "mxfp4" and Path("exports/first/config.json").is_file()
    code, out, err = gptoss("verify-export", "exports/first", "--base", base)
    assert code == 0, err
    for check in ("shards and index", "values", "config and tokenizer", "forward pass"):
        assert check in out
    assert "problem" not in out


def test_every_format_is_written_and_verified(run, base, gptoss):
    for format in ("mxfp4", "bf16", "gguf", "adapter"):
        line = ("export", run, "--base", base, "--format", format, "--out", f"out/{format}")
        code, _, err = gptoss(*line)
        assert code == 0, err
        assert (Path("out") / format / "SERVING.md").is_file()
        code, out, err = gptoss("verify-export", f"out/{format}", "--base", base)
        assert code == 0, out + err
    assert json.loads(Path("out/bf16/export.json").read_text())["training"]["lora_r"] == 4


def test_the_base_is_found_where_the_run_trained_on_it(run, base, gptoss):
    code, _, err = gptoss("export", run, "--out", "out")
    assert code == 0, err
    assert str(base) not in Path("out/export.json").read_text()  # no path of this machine
    code, out, _ = gptoss("verify-export", "out", "--json", "--no-forward")
    assert code == 0 and json.loads(out)["base"] is None


def test_a_damaged_export_lists_its_problems_and_ends_with_exit_code_1(run, base, gptoss):
    assert gptoss("export", run, "--base", base, "--out", "out")[0] == 0
    ref = open_checkpoint(Path("out")).tensors["model.layers.0.self_attn.sinks"]
    with ref.path.open("r+b") as file:
        file.seek(ref.offset)
        file.write(b"\xff\xff")  # NaN in bfloat16
    code, out, err = gptoss("verify-export", "out", "--base", base)
    assert code == 1
    assert "sinks holds NaN or infinity" in out and "sinks differs from the base" in out
    assert err.splitlines()[-2] == "error: 2 problems in out"
    assert gptoss("verify-export", base)[0] == 2  # no export at all


def test_a_dry_run_says_what_would_be_kept_and_writes_nothing(run, base, gptoss):
    for format in ("mxfp4", "bf16", "gguf"):
        code, out, err = gptoss("export", run, "--base", base, "--format", format, "--dry-run")
        assert code == 0, err
        assert out.startswith("would write exports/first") and "kept after rounding" in out
    assert not Path("exports").exists()


def test_experts_into_mxfp4_need_a_word_and_bf16_does_not(expert_adapter, base, gptoss):
    line = ("export", expert_adapter, "--base", base, "--out", "out")
    code, out, err = gptoss(*line)
    assert (code, out) == (2, "")
    for word in ("cannot hold it", "unmerged", "--format bf16", "--requantize-experts"):
        assert word in err
    assert not Path("out").exists()
    code, out, err = gptoss(*line, "--requantize-experts")
    assert code == 0 and "packed into MXFP4 again" in err and "experts.down_proj" in out
    assert gptoss(*line, "--format", "bf16", "--overwrite")[0] == 0
    assert gptoss("verify-export", "out", "--base", base)[0] == 0


def test_a_model_is_no_target(base, gptoss):
    code, out, err = gptoss("export", base)
    assert (code, out) == (2, "") and "is a model, not an adapter" in err
    code, out, err = gptoss("export", "misspelt/run")
    assert (code, out) == (2, "") and "misspelt/run is no folder here" in err


def change_base(folder: Path, name: str, change) -> None:
    path = open_checkpoint(folder).tensors[name].path
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


NAME = "model.layers.0.self_attn.q_proj.weight"
SINKS = "model.layers.1.self_attn.sinks"
BLOCKS = "model.layers.0.mlp.experts.down_proj_blocks"
BROKEN_BASES = {
    "truncated shard": (
        lambda b: os.truncate(open_checkpoint(b).tensors[NAME].path, 9000),
        "is cut off: 9,000 bytes where its header says",
    ),
    "missing shard": (
        lambda b: open_checkpoint(b).tensors[NAME].path.unlink(),
        "lacks the shard",
    ),
    "missing tensor": (
        lambda b: change_base(b, NAME, lambda h: h.pop(NAME)),
        f"lacks the tensor {NAME}",
    ),
    "missing tensor that no adapter touches": (
        lambda b: (change_base(b, SINKS, lambda h: h.pop(SINKS)), unlist(b, SINKS)),
        f"no whole gpt-oss: {SINKS} is missing",
    ),
    "wrong shape that no adapter touches": (
        lambda b: change_base(b, SINKS, lambda h: h.update({SINKS: torch.ones(5)})),
        f"{SINKS} has shape (5,), and config.json asks for (4,)",
    ),
    "wrong shape": (
        lambda b: change_base(b, NAME, lambda h: h.update({NAME: torch.ones(128, 32)})),
        "(4, 64), but rank 4 and the base's",
    ),
    "blocks without scales": (
        lambda b: (
            change_base(b, BLOCKS, lambda h: h.pop(BLOCKS)),
            unlist(b, BLOCKS),
        ),
        "has blocks or scales, not both",
    ),
    "blocks of a wrong shape": (
        lambda b: change_base(b, BLOCKS, lambda h: h.update({BLOCKS: h[BLOCKS][:, :, :1].clone()})),
        "down_proj_blocks is U8",
    ),
    "config that is no JSON": (
        lambda b: (b / "config.json").write_text("{"),
        "config.json",
    ),
}  # fmt: skip
BROKEN_ADAPTERS = {
    "truncated": (
        lambda a: os.truncate(a / "adapter_model.safetensors", 900),
        "adapter_model.safetensors",
    ),
    "NaN": (
        lambda a: edit_weights(a, lambda w: w[f"{Q0}.lora_A.weight"].fill_(float("nan"))),
        "holds NaN or infinity",
    ),
    "another model's layers": (
        lambda a: edit_weights(
            a, lambda w: w.update({k.replace("layers.2", "layers.7"): w.pop(k) for k in list(w)})
        ),
        "layers.7.self_attn",
    ),
    "another model's width": (
        lambda a: edit_weights(
            a, lambda w: w.update({k: v[:, :32].clone() for k, v in w.items() if "lora_A" in k})
        ),
        "has shape (4, 32)",
    ),
    "half a LoRA": (
        lambda a: edit_weights(a, lambda w: w.pop(f"{Q0}.lora_B.weight")),
        "lacks lora_B",
    ),
    "another rank": (lambda a: edit_config(a, r=8), "rank 8"),
    "another kind": (lambda a: edit_config(a, peft_type="LOHA"), "only LoRA can be merged"),
}  # fmt: skip


def unlist(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].pop(name)
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("format", ["mxfp4", "bf16", "gguf"])
@pytest.mark.parametrize("name", BROKEN_BASES)
def test_a_broken_base_is_a_sentence_and_leaves_nothing(name, format, base, adapter, gptoss):
    damage, words = BROKEN_BASES[name]
    damage(shutil.copytree(base, Path("base")))
    refused("export", adapter, "--base", "base", words=words, format=format, gptoss=gptoss)


@pytest.mark.parametrize("format", ["mxfp4", "bf16", "gguf", "adapter"])
@pytest.mark.parametrize("name", BROKEN_ADAPTERS)
def test_a_broken_adapter_is_a_sentence_and_leaves_nothing(name, format, base, adapter, gptoss):
    damage, words = BROKEN_ADAPTERS[name]
    damage(shutil.copytree(adapter, Path("adapter")))
    refused("export", "adapter", "--base", base, words=words, format=format, gptoss=gptoss)


def refused(*line, words: str, format: str, gptoss) -> None:
    before = sorted(path.name for path in Path().iterdir())
    code, out, err = gptoss(*line, "--format", format, "--out", "out")
    assert code in (1, 2) and out == ""
    message = [text for text in err.splitlines() if text.startswith("error: ")]
    assert len(message) == 1 and words in message[0], err
    assert "Traceback" not in err and "Error:" not in err
    assert sorted(path.name for path in Path().iterdir()) == before


def called(*line, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gptoss_tools", *map(str, line)]
    return subprocess.run(command, capture_output=True, text=True, **more)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["mxfp4", "bf16"])
def test_a_limit_on_the_size_of_files_is_a_sentence_and_leaves_nothing(
    format, base, adapter, tmp_path
):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    line = ("export", adapter, "--base", base, "--format", format, "--out", "there/out")
    done = called(*line, preexec_fn=limit)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: there may not hold a file that large; nothing was kept" in done.stderr
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["mxfp4", "bf16", "gguf"])
def test_a_disk_that_is_really_full_is_a_sentence_and_leaves_nothing(
    format, base, adapter, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    small = f"mount -t tmpfs -o size=200k tmpfs {disk}"
    if subprocess.run([*mount, small], capture_output=True).returncode:
        pytest.skip("no file system of its own can be mounted here")
    command = f"{sys.executable} -m gptoss_tools export {adapter} --base {base} --format {format}"
    script = f"{small} && {command} --out {disk}/out; echo $?; ls -A {disk}"
    done = subprocess.run([*mount, script], capture_output=True, text=True)
    assert done.stdout.split() == ["1"], done.stdout + done.stderr  # the code, and no file
    assert "error: the disk of" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_export_ended_by_sigterm_leaves_nothing_and_can_be_repeated(base, adapter, tmp_path):
    line = [sys.executable, "-m", "gptoss_tools", "export", adapter, "--base", base, "--out", "out"]
    process = subprocess.Popen([str(part) for part in line], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(".out.partial/*")):
        pass
    process.terminate()
    process.communicate()
    left = [path.name for path in tmp_path.iterdir()]
    assert (process.returncode, left) in [(130, []), (0, ["out"])]
    assert called(*line[3:], "--overwrite").returncode == 0
    assert tensors(tmp_path / "out").keys() == tensors(base).keys()
