"""gpt-oss-20b's exact shapes on one GPU: memory, tokens a second, and one whole GRPO step.

    python benchmarks/gpu_20b.py [--size 20b|tiny] [--folder DIR] [--out DIR]

Makes a random checkpoint in the published MXFP4 layout, then measures, each in a process of its own
and with the experts packed and dequantised: loading; forward, loss and backward of a micro-batch of
8192 tokens (8 completions of 200 on a prompt of 824), prompts repeated and shared; drawing 32 x 8
completions of 200 tokens behind prompts of 1000; and whole steps of that size, 8192 tokens in a
forward. Shared prompts use flex attention on a GPU (--attention eager: plain PyTorch). The floors
are what an H200 could do at best, 2N operations a token for each of forward, recomputation and the
input's gradient: 36.5 thousand training tokens a second, 3.1 s a step. Without a GPU it runs at
tiny shapes on the CPU, which shows that it runs, and says which figures are missing. `--size 20b`
needs 80 GB of GPU memory for the dequantised half (--experts packed: 24 GB) and 28 GB of disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import measuring
from goals import goal, write

HERE = Path(__file__).resolve().parent
EXPERTS = ("packed", "dequantized")
STAGES = ("load", "micro_batch", "rollout", "step")
FLOOR_RATE, FLOOR_STEP = 36_500.0, 3.1  # tokens/s and seconds on one H200
# prompt and completion of the micro-batch; prompts, group, prompt and completion of a step
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "20b": {"micro_batch": (824, 200), "step": (32, 8, 1000, 200)},
    "tiny": {"micro_batch": (60, 8), "step": (4, 4, 60, 8)},
}
ATTENTION = "BENCHMARK_ATTENTION"
GROUP = {"20b": 8, "tiny": 4}
PER_MICRO_BATCH = 8  # prompts
TOKENS_PER_FORWARD = {"20b": 8192, "tiny": 200}


def load(folder: Path, size: str, experts: str) -> dict[str, Any]:
    """Load the model as training does."""
    from gptoss_tools.models.loading import load_model

    model = load_model(folder / "base", device=device(), experts=experts)
    held = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    return {"weights_gb": held / 1e9}


def micro_batch(folder: Path, size: str, experts: str) -> dict[str, Any]:
    """Forward, loss and backward of one group, prompts repeated and shared."""
    import torch
    from shared_prompts import furnish, in_turn, settings, trainer

    prompt, completion = SIZES[size]["micro_batch"]
    group = GROUP[size]
    table = furnish(folder, prompt, folder / "base")
    wanted = settings(table, completion, group, 1, True, **common(folder, experts))
    run = trainer(wanted, stock=False)
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    rows = [run.train_dataset[i] for i in run._get_train_sampler().generation_batch(0).tolist()]
    batch = run._prepare_inputs(rows)
    batch["advantages"] = torch.linspace(-1, 1, len(rows), device=batch["advantages"].device)
    tokens = int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
    peaks = {}

    def once(share: bool) -> None:
        run.share_prompts = share
        run.model.zero_grad()
        with peak_of(peaks, "shared" if share else "repeated"):
            run.compute_loss(run.model, batch).backward()

    repeated, shared = in_turn([lambda: once(False), lambda: once(True)], 3)
    return {
        "tokens": tokens,
        "repeated_tokens_per_second": tokens / repeated,
        "shared_tokens_per_second": tokens / shared,  # of the same rows
        **{f"{name}_peak_gb": peak for name, peak in peaks.items()},
    }


def rollout(folder: Path, size: str, experts: str) -> dict[str, Any]:
    """Draw the completions of one step, prompts read once."""
    run = of_a_step(folder, size, experts, steps=1)
    run.model.train()
    rows = [run.train_dataset[i] for i in run._get_train_sampler().generation_batch(0).tolist()]
    prompts = run._tokenize_prompts([row["prompt"] for row in rows])[0]
    start = time.perf_counter()
    ids, _ = run._generate_single_turn(prompts, None, {}, GROUP[size])
    seconds = time.perf_counter() - start
    return {"drawn": sum(map(len, ids)), "tokens_per_second": sum(map(len, ids)) / seconds}


def step(folder: Path, size: str, experts: str) -> dict[str, Any]:
    """Whole steps: draw, score, learn."""
    run = of_a_step(folder, size, experts, steps=3)
    with contextlib.redirect_stdout(sys.stderr):
        run.train()
    times = [record["step_time"] for record in run.state.log_history if "step_time" in record]
    return {"step_seconds": median(times[1:])}  # the first one warms up


def of_a_step(folder: Path, size: str, experts: str, steps: int) -> Any:
    """A trainer whose steps have the published size."""
    from shared_prompts import furnish, settings, trainer

    prompts, group, prompt, completion = SIZES[size]["step"]
    table = furnish(folder, prompt, folder / "base", rows=prompts)
    per = min(PER_MICRO_BATCH, prompts)
    layout = {"prompts_per_step": per, "gradient_accumulation_steps": prompts // per}
    own = common(folder, experts) | layout | {"tokens_per_forward": TOKENS_PER_FORWARD[size]}
    return trainer(settings(table, completion, group, steps, True, **own), stock=False)


def common(folder: Path, experts: str) -> dict[str, Any]:
    """What every measurement sets."""
    where = device()
    return {
        "model": str(folder / "base"),
        "device": where,
        "dtype": "bfloat16" if where == "cuda" else "float32",
        "experts": experts,
        "attn_implementation": os.environ.get(ATTENTION, "auto"),
        "gradient_checkpointing": True,
        "lora_r": 4,
        "lora_alpha": 8,
    }


def device() -> str:
    """Where it runs."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def peak_of(peaks: dict[str, float], name: str):
    """Note the largest GPU memory within the block, in GB."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    yield
    peaks[name] = torch.cuda.max_memory_allocated() / 1e9


def worker(stage: str, folder: Path, size: str, experts: str) -> None:
    """Run one stage here and print its figures as the last line."""
    import torch

    start = time.perf_counter()
    facts = globals()[stage](folder, size, experts)
    facts["seconds"] = time.perf_counter() - start
    if torch.cuda.is_available():
        facts["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        facts["gpu"] = torch.cuda.get_device_name()
    print("\n" + json.dumps(facts))


def share() -> float:
    """What packed weights take of all-bfloat16 ones, from the published shapes."""
    from gptoss_tools.models.machine import estimate_memory, published_config

    config = published_config("openai/gpt-oss-20b")
    assert config is not None
    memory = estimate_memory(config)
    return memory.packed / memory.bfloat16


def goals_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the issue of speed asks of a 20b on one GPU; None where it was not measured."""

    def figure(stage: str, name: str) -> float | None:
        found = [r for r in rows if r["stage"] == stage and r["experts"] == "packed" and "gpu" in r]
        return found[0].get(name) if found else None

    return [
        goal(
            "20b, packed: bytes of the weights beside bfloat16's, by shape", share(), 0.34, "lower"
        ),
        goal(
            "20b, packed: peak GB at 8192 tokens",
            figure("micro_batch", "repeated_peak_gb"),
            20,
            "lower",
        ),
        goal(
            "20b, packed: training tokens a second, prompts repeated",
            figure("micro_batch", "repeated_tokens_per_second"),
            FLOOR_RATE / 3,
            "higher",
        ),
        goal(
            "20b, packed: seconds of a step of 32 x 8 x (1000 + 200)",
            figure("step", "step_seconds"),
            4 * FLOOR_STEP,
            "lower",
        ),
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Everything measured, as Markdown."""
    lines = ["| stage | experts | |", "|---|---|---|"]
    for row in rows:
        facts = {k: v for k, v in row.items() if k not in ("stage", "experts", "gpu")}
        said = ", ".join(f"{k} {v:.4g}" for k, v in facts.items())
        lines.append(f"| {row['stage']} | {row['experts']} | {said} |")
    return "\n".join(lines)


def main() -> None:
    """Make the checkpoint, run the stages, keep what they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="default: 20b with a GPU, else tiny")
    parser.add_argument("--folder", type=Path, help="where to work, kept (default: temporary)")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--experts", nargs="*", choices=EXPERTS, default=list(EXPERTS))
    parser.add_argument("--attention", choices=("auto", "eager", "flex_attention"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], options.folder, options.size, options.worker[1])
        return
    if options.attention:
        os.environ[ATTENTION] = options.attention  # the workers read it
    size = options.size or ("20b" if device() == "cuda" else "tiny")
    rows, raw = [], []
    with contextlib.ExitStack() as stack:
        home = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        home.mkdir(parents=True, exist_ok=True)
        base = [sys.executable, HERE / "make_checkpoint.py", "--size", size, "--out", home / "base"]
        if not (home / "base").exists():
            measuring.run(base)
        for experts in options.experts:
            for stage in options.stages:
                command = [sys.executable, Path(__file__).resolve(), "--worker", stage, experts]
                child = measuring.run([*command, "--size", size, "--folder", home])
                facts = json.loads(child.said.splitlines()[-1])
                rows.append({"stage": stage, "experts": experts, **facts})
                rows[-1]["peak_rss_gb"] = child.peak_rss / 1e9
                raw.append(f"== {stage}, {experts}\n{child.said}")
                print(f"{stage}, {experts}: {facts['seconds']:.1f} s", file=sys.stderr, flush=True)
        facts = measuring.machine(home) | {
            "gpu": next((r["gpu"] for r in rows if "gpu" in r), None)
        }
    print(table(rows))
    goals = goals_of(rows) if size == "20b" else goals_of([])
    missing = [row["name"] for row in goals if row["value"] is None]
    if missing:
        print("\nnot shown here, for want of a GPU: " + "; ".join(missing))
    if options.out:
        record = {"size": size, "machine": facts, "goals": goals, "rows": rows}
        write(options.out, "gpu_20b", "python benchmarks/gpu_20b.py", record)
        (options.out / "gpu_20b.log").write_text("\n".join(raw), encoding="utf-8")


if __name__ == "__main__":
    main()
