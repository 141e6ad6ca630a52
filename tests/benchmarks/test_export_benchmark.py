"""The export benchmark counts what it says it counts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def measuring(script):
    return script("measuring")


@pytest.fixture(scope="module")
def benchmark(script):
    return script("export")


def test_a_child_s_seconds_and_memory_are_its_own(measuring):
    # pages that are written count; 100 MB of them, and as much under the limit for the parent
    code = "import time; b = bytearray(100_000_000); b[::4096] = b'1' * len(b[::4096]); "
    child = measuring.run([sys.executable, "-c", code + "time.sleep(0.3); print('done')"])
    assert child.said == "done\n"
    assert 0.3 < child.seconds < 30
    assert 100e6 < child.peak_anonymous <= child.peak_rss * 1.01
    assert child.peak_rss < 100e6 + 2e9


def test_a_child_that_fails_ends_the_benchmark_with_its_words(measuring):
    with pytest.raises(SystemExit, match="no such file here"):
        measuring.run([sys.executable, "-c", "raise SystemExit('no such file here')"])


def test_the_users_settings_do_not_reach_a_measured_child(measuring, monkeypatch):
    monkeypatch.setenv("GPTOSS_EXPORT_FORMAT", "gguf")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    child = measuring.run([sys.executable, "-c", "import os; print(sorted(os.environ))"])
    assert "GPTOSS_EXPORT_FORMAT" not in child.said and "HF_TOKEN" not in child.said


def test_dequantised_bytes_are_those_of_the_bf16_model(benchmark, make_checkpoint, synthetic):
    base, _ = synthetic
    config = make_checkpoint.config_of("tiny")
    config.vocab_size = json.loads((base / "config.json").read_text())["vocab_size"]
    parameters = 0
    for tensor in make_checkpoint.tensor_table(config):
        if tensor.name.endswith("_blocks"):
            parameters += 2 * tensor.nbytes  # two values to a byte
        elif not tensor.name.endswith("_scales"):
            parameters += tensor.nbytes // 2
    assert benchmark.dequantised_bytes(base) == 2 * parameters


def test_extrapolation_goes_along_a_line(benchmark):
    # 10 s at 2 GB, 16 s at 4 GB: 3 s a GB and 4 s at the start, so 22 s at 6 GB
    assert benchmark.line([(2, 10.0), (4, 16.0)], 6) == 22.0


def row(what, seconds, size=1_000_000, rss=50e6, sources="cold"):
    facts = {"what": what, "sources": sources, "seconds": seconds, "bytes": size}
    facts["own_seconds"] = None if what == "cp" else seconds - 1
    return facts | {"peak_rss": rss, "peak_anonymous": rss / 2, "extrapolated": False}


def test_rounds_become_medians_and_largest_memory_beside_cp(benchmark):
    rows = [row("cp", 1.0), row("cp", 3.0), row("mxfp4", 4.0, rss=60e6), row("mxfp4", 4.0)]
    rows.append(row("gguf", 2.0, size=500_000))
    cp, mxfp4, gguf = benchmark.summarize(rows)
    assert cp["seconds"] == 2.0 and cp["rate"] == 500_000 and cp["of_cp"] == 1
    assert mxfp4["of_cp"] == 0.5 and mxfp4["peak_rss"] == 60e6 and mxfp4["rounds"] == 2
    assert gguf["rate"] == 250_000 and gguf["of_cp"] == 0.5
    assert "| mxfp4 | cold | 2 | 4.0 | 3.0 | 1.0 | 0 | 0.50 | 60 MB |" in benchmark.table([mxfp4])
    guess = mxfp4 | {"extrapolated": True}
    assert "| extrapolated | about 4.0 | 3.0 |" in benchmark.table([guess])


@pytest.mark.slow
def test_the_tiny_benchmark_runs_and_writes_no_results(tmp_path, pytestconfig):
    command = [sys.executable, pytestconfig.rootpath / "benchmarks" / "export.py"]
    options = ["--formats", "mxfp4", "--rounds", "1", "--folder", tmp_path, "--out", tmp_path / "r"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:-2]] == [
        "| cp",
        "| mxfp4",
        "| cp",
        "| mxfp4",
        "| load-merge-save, 1 layer",
        "| load-merge-save, 2 layers",
        "| load-merge-save, whole",
    ]
    assert lines[-1].startswith("Load average meanwhile: ")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "base-adapter"}
