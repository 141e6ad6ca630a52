"""The MixLoRA benchmark compares like with like, and its page shows what it measured."""

import importlib.util
import json
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(pytestconfig):
    path = pytestconfig.rootpath / "benchmarks" / "mixlora.py"
    spec = importlib.util.spec_from_file_location("mixlora_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_small_run_writes_its_figures_and_table(benchmark, tmp_path, capsys):
    page = tmp_path / "mixlora.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    threads = torch.get_num_threads()
    try:
        benchmark.main(
            ["--seeds", "1", "--steps", "5", "--mixtures", "conflict", "--out", str(tmp_path)]
        )
    finally:
        torch.set_num_threads(threads)
    facts = json.loads((tmp_path / "mixlora.json").read_text())
    assert (facts["seeds"], facts["steps"]) == (1, 5)
    (result,) = facts["results"]
    lora, mixed = result["runs"]
    # MixLoRA: 4 experts * rank 5 * 3 * (64 + 24), router 4 * 64; LoRA: 21 * 3 * (64 + 24)
    assert (mixed["parameters"], lora["parameters"]) == (5280 + 256, 5544)
    assert 3 < mixed["loss"] < 10 and 3 < lora["loss"] < 10  # hardly trained; chance is 4.16
    text = page.read_text()
    assert text.startswith("before\n<!-- table -->\n| mixture |")
    assert text.endswith("<!-- end of table -->\nafter\n") and "old" not in text
    assert benchmark.table(facts["results"]) in capsys.readouterr().out


def test_lora_never_has_fewer_parameters(benchmark):
    for mixture in benchmark.MIXTURES.values():
        attention = 4 * 2 * 64 if len(mixture.targets) == 7 else 0
        per_rank = 3 * (64 + mixture.inner) + attention
        assert mixture.parameters() <= mixture.lora_rank() * per_rank
        assert mixture.parameters() > (mixture.lora_rank() - 1) * per_rank
        # LoRA is not wasted on ranks beyond what the matrices have.
        assert mixture.lora_rank() < min(mixture.inner, 64)


def test_held_out_questions_are_right_and_new(benchmark):
    tasks = benchmark.Tasks(3, 5)
    ids, images = tasks.batch(200)
    for row, answers in zip(ids, images, strict=True):
        image = tasks.images[row[0] - 64]
        assert answers.tolist() == [image[symbol].item() for symbol in row[1:]]
    assert not torch.equal(tasks.batch(200)[0], ids)
    assert torch.equal(benchmark.Tasks(3, 5).batch(200)[0], ids)


def test_the_interval_is_students(benchmark):
    # 1, 2, 3: mean 2, deviation 1; 4.303 / sqrt(3) = 2.484
    assert benchmark.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.484), abs=1e-3)
    assert benchmark.interval([1.5]) == (1.5, 0.0)


def test_the_page_shows_the_measured_table(benchmark, repository):
    facts = json.loads((repository / "docs" / "mixlora.json").read_text())
    page = (repository / "docs" / "mixlora.md").read_text()
    assert f"<!-- table -->\n{benchmark.table(facts['results'])}\n<!-- end of table -->" in page
    gaps = {}
    for result in facts["results"]:
        losses = {
            arm: [r["loss"] for r in result["runs"] if r["arm"] == arm] for arm in benchmark.ARMS
        }
        gaps[result["mixture"]] = sum(losses["MixLoRA"]) / 5 - sum(losses["LoRA"]) / 5
    # What the page says in words.
    said = {"conflict": -0.77, "few": -0.06, "one": 0.01, "wide": 0.08, "ranks": 0.18}
    assert {name: round(gaps[name], 2) for name in said} == said
