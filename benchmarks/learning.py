"""Which recipe learns fastest: held-out regret against completions sampled, over several seeds.

    python benchmarks/learning.py [--seeds 5] [--steps 120] [--workers 2] [--out docs]

Every arm trains the same tiny base on data/train and is measured on data/heldout by the code of
`gptoss evaluate`. The base is a tiny gpt-oss whose answers are no action in about a third of the
draws, as a 20b's are before training (26 % in the log of the system behind seed 003), so that the
price of an invalid answer matters. Writes learning.json, learning.svg and learning.md into --out;
arms that learning.json already holds (same steps and seeds) are not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
INVALID_SHARE = 0.35
EVAL_EVERY = 15
FLOOR = 0.02  # of the plot's regret
# The settings all arms share; what TRL calls them too.
COMMON: dict[str, Any] = {
    "num_generations": 8,
    "prompts_per_step": 8,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 40,
    "learning_rate": 2e-3,
    "lora_r": 16,
    "lora_alpha": 32,
    "loss_type": "dapo",
    "gradient_checkpointing": False,
    "save_steps": 10_000,
    "eval_batch_size": 144,
    "log_completions": False,
}
# name -> (what it is, how values become rewards, settings)
ARMS: dict[str, tuple[str, tuple[str, float], dict[str, Any]]] = {
    "trl": ("plain TRL GRPOTrainer, invalid: None", ("boltzmann", 0.05), {}),
    "mask": ("ours, invalid masked (the seed's way)", ("boltzmann", 0.05), {}),
    "zero": ("ours, invalid earns 0", ("boltzmann", 0.05), {"invalid_reward": 0.0}),
    "tau 0.02": ("ours, invalid 0, tau 0.02", ("boltzmann", 0.02), {"invalid_reward": 0.0}),
    "tau 0.2": ("ours, invalid 0, tau 0.2", ("boltzmann", 0.2), {"invalid_reward": 0.0}),
    "regret": ("ours, invalid 0, regret, tau 0.2", ("regret", 0.2), {"invalid_reward": 0.0}),
    "log-regret": (
        "ours, invalid worst, log-regret, tau 0.05",
        ("log-regret", 0.05),
        {"invalid_reward": "worst"},
    ),
}


def base_model(cache: Path) -> Path:
    """Build the tiny base that often answers with no action."""
    from gptoss_tools.models.tiny import Recipe
    from gptoss_tools.models.tiny_cache import tiny_path

    return tiny_path(cache, recipe=Recipe(invalid_share=INVALID_SHARE))


def train_arm(job: tuple[str, int, int, str]) -> dict[str, Any]:
    """Train one arm with one seed; return its curve of held-out figures."""
    import torch

    torch.set_num_threads(1)
    arm, seed, steps, home = job
    _, (method, tau), own = ARMS[arm]
    from gptoss_tools.core.history import read_metrics
    from gptoss_tools.data.score import score
    from gptoss_tools.settings import TrainSettings
    from gptoss_tools.training.train import train

    started = time.monotonic()
    folder = Path(home) / f"{arm.replace(' ', '-')}-{seed}"
    folder.mkdir()
    shutil.copytree(ROOT / "data" / "train", folder / "data")
    score([folder / "data"], tau=tau, method=method, overwrite=True)
    settings = TrainSettings(
        **COMMON,
        **own,
        model=str(base_model(Path(home))),
        data=[str(folder / "data")],
        eval_data=[str(ROOT / "data" / "heldout")],
        eval_steps=EVAL_EVERY,
        max_steps=steps,
        seed=seed,
        output_dir=str(folder / "run"),
    )
    (plain_trl if arm == "trl" else train)(settings)
    records = read_metrics(folder / "run" / "metrics.jsonl")
    points = [r for r in records if r.get("eval_regret") is not None]
    per_step = COMMON["num_generations"] * COMMON["prompts_per_step"]
    return {
        "arm": arm,
        "seed": seed,
        "completions": [r["step"] * per_step for r in points],
        "regret": [r["eval_regret"] for r in points],
        "invalid": [r["eval_invalid"] for r in points],
        "sampled_invalid": [r.get("invalid_share") for r in records],
        "seconds": time.monotonic() - started,
    }


def plain_trl(settings: Any) -> None:
    """Train with TRL's own trainer: its sampler, its handling of None, its saving."""
    from peft import get_peft_model
    from transformers import set_seed
    from trl.trainer.grpo_trainer import GRPOTrainer

    from gptoss_tools.core.runs import Run
    from gptoss_tools.models.loading import load_model
    from gptoss_tools.models.lora import lora_config
    from gptoss_tools.training.configuring import make_config
    from gptoss_tools.training.heldout import HeldOut
    from gptoss_tools.training.preparation import prepare
    from gptoss_tools.training.rewarding import DecisionReward
    from gptoss_tools.training.tracking import Metrics

    prepared = prepare(settings)
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True)
    args = make_config(settings, str(folder), rows=prepared.rows)
    args.shuffle_dataset = True  # TRL's default
    args.save_strategy = "no"
    model = load_model(prepared.model, dtype="float32", device="cpu")
    set_seed(settings.seed)
    adapter = lora_config(
        r=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
    )
    held_out = HeldOut(Run(folder), prepared.held_out, settings)
    trainer = GRPOTrainer(
        model=get_peft_model(model, adapter),
        args=args,
        reward_funcs=DecisionReward.from_settings(settings, prepared.tokenizer),
        train_dataset=prepared.dataset,
        processing_class=prepared.tokenizer,
        callbacks=[Metrics(folder / "metrics.jsonl", 1), held_out],
    )
    held_out.trainer = trainer
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every record
        trainer.train()


def summarize(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per arm: final and mean regret over the seeds, with 95 % intervals."""
    rows = []
    for arm, (what, _, _) in ARMS.items():
        own = [c for c in curves if c["arm"] == arm]
        if not own:
            continue
        regret = np.array([c["regret"] for c in own])
        final, area = regret[:, -1], regret[:, 1:].mean(axis=1)
        rows.append(
            {
                "arm": arm,
                "what": what,
                "seeds": len(own),
                "final": _interval(final),
                "along": _interval(area),
                "invalid": float(np.mean([c["invalid"][-1] for c in own])),
                "sampled_invalid": float(
                    np.mean([[s for s in c["sampled_invalid"] if s is not None][-10:] for c in own])
                ),
            }
        )
    return rows


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half width of the 95 % interval over seeds, by Student's t."""
    student = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
    n = len(values)
    if n < 2:
        return float(values.mean()), float("nan")
    half = student.get(n, 2.0) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean()), float(half)


def draw(curves: list[dict[str, Any]], target: Path) -> None:
    """Draw regret against completions, mean and interval per arm."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "learning"
    import matplotlib.pyplot as plt

    colours = ["#999999", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#000000"]
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for colour, arm in zip(colours, ARMS, strict=False):
        own = [c for c in curves if c["arm"] == arm]
        if not own:
            continue
        x, y = np.array(own[0]["completions"]), np.array([c["regret"] for c in own])
        mean = y.mean(axis=0)
        half = np.array([_interval(column)[1] for column in y.T])
        axes.plot(x, mean, color=colour, label=ARMS[arm][0], linewidth=1.8)
        low = np.maximum(mean - half, FLOOR)  # a mean of five may reach below 0, a regret not
        axes.fill_between(x, low, mean + half, color=colour, alpha=0.1, linewidth=0)
        axes.plot(x, y.T, color=colour, alpha=0.35, linewidth=0.6)
    axes.set_xlabel("completions sampled")
    axes.set_ylabel("held-out regret (unit of Q), log scale")
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, None)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("thick: mean of the seeds; thin: each seed; band: 95 %", fontsize=8, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> str:
    """Return the result as a Markdown table."""
    lines = [
        "| arm | final held-out regret | mean along the way | greedy invalid | sampled invalid, "
        "last 10 steps |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        final, along = row["final"], row["along"]
        lines.append(
            f"| {row['what']} | {final[0]:.3f} ± {final[1]:.3f} | {along[0]:.3f} ± {along[1]:.3f} "
            f"| {row['invalid']:.1%} | {row['sampled_invalid']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    store = options.out / "learning.json"
    held = json.loads(store.read_text()) if store.exists() else {}
    curves = held.get("curves", []) if held.get("steps") == options.steps else []
    done = {(c["arm"], c["seed"]) for c in curves}
    jobs = [(a, s) for s in range(options.seeds) for a in options.arms if (a, s) not in done]
    with tempfile.TemporaryDirectory() as home:
        if jobs:
            base_model(Path(home))
        context = multiprocessing.get_context("spawn")
        with context.Pool(options.workers, maxtasksperchild=1) as pool:
            work = [(arm, seed, options.steps, home) for arm, seed in jobs]
            for curve in pool.imap_unordered(train_arm, work):
                curves.append(curve)
                facts = {
                    "steps": options.steps,
                    "invalid_share_of_base": INVALID_SHARE,
                    "hardware": f"{options.workers} of {os.cpu_count()} CPU cores, "
                    f"{platform.machine()}, one thread a run",
                    "curves": sorted(curves, key=lambda c: (list(ARMS).index(c["arm"]), c["seed"])),
                }
                store.write_text(json.dumps(facts) + "\n", encoding="utf-8")
                print(
                    f"{curve['arm']} seed {curve['seed']}: regret {curve['regret'][-1]:.3f}, "
                    f"{curve['seconds']:.0f} s ({len(curves)} curves)",
                    flush=True,
                )
    rows = summarize(curves)
    draw(curves, options.out / "learning.svg")
    text = table(rows)
    page = options.out / "learning.md"
    if page.exists():
        before = page.read_text(encoding="utf-8")
        start, end = "<!-- table -->\n", "<!-- end of table -->"
        head, rest = before.split(start, 1)
        page.write_text(head + start + text + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
    print(text)


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
