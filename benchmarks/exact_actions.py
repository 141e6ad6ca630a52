"""How many completions the exact action gradient saves: held-out regret, and the gradient's chance.

    python benchmarks/exact_actions.py [--seeds 5] [--completions 3840] [--out benchmarks/results]

Every arm trains the tiny base of benchmarks/learning.py (about a third of its first answers are no
action) on data/train with the same settings and its own PROMPTS x COMPLETIONS a step, until the
greedy policy's regret on data/heldout is at most 0.1 in two measurements in a row (dice lose 1.66,
the best fixed action 0.16), or the completions are used up, which then count as needed. Arms run
one after another; each (arm, seed) is kept in a file under --work, so that what was interrupted
goes on, and what did not get there is run again when --completions is raised (with --arms, for some
arms only: the rate is constant, so a longer run begins like a shorter one).

The gradient's variance is that of whole steps on the same 8 prompts, drawn again and again by one
policy; both ways see the same completions. Writes exact_actions.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from goals import goal, write
from measuring import machine

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.1
LOOK_EVERY = 128  # completions
# name -> (action_gradient, prompts a step, completions per prompt)
ARMS = {
    "exact 8x2": ("exact", 8, 2),
    "exact 4x2": ("exact", 4, 2),
    "sampled 8x8": ("sampled", 8, 8),
    "sampled 8x2": ("sampled", 8, 2),
}
COMMON: dict[str, Any] = {
    "gradient_accumulation_steps": 1,
    "max_completion_length": 40,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "lora_r": 16,
    "lora_alpha": 32,
    "invalid_reward": "worst",
    "gradient_checkpointing": False,
    "save_steps": 10_000,
    "eval_batch_size": 144,
    "log_completions": False,
    "device": "cpu",
    "dtype": "float32",
    "date": "2026-01-01",
}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}


class Reached(Exception):
    """The regret is low enough: nothing more is to be learned from this run."""


def settings(work: Path, arm: str, seed: int, folder: Path, **more: Any) -> Any:
    from learning import base_model

    from gptoss_tools.settings import TrainSettings

    way, prompts, group = ARMS[arm]
    given = {
        **COMMON,
        "action_gradient": way,
        "prompts_per_step": prompts,
        "num_generations": group,
        "seed": seed,
        "model": str(base_model(work)),
        "data": [str(table(work))],
        "eval_data": [str(ROOT / "data" / "heldout")],
        "output_dir": str(folder),
    }
    return TrainSettings(**{**given, **more})


def table(work: Path) -> Path:
    """Return the training table with the rewards that learning.py found best."""
    from gptoss_tools.data.score import score

    folder = work / "data"
    if not folder.exists():
        shutil.copytree(ROOT / "data" / "train", folder)
        score([folder], tau=0.05, method="log-regret", overwrite=True)
    return folder


def learn(work: Path, arm: str, seed: int, completions: int) -> dict[str, Any]:
    """Train one arm with one seed up to the target; return its curve."""
    from gptoss_tools.core.history import read_metrics
    from gptoss_tools.training.train import train

    a_step = ARMS[arm][1] * ARMS[arm][2]
    low = 0

    def look(progress: Any) -> None:
        nonlocal low
        if progress.step % (LOOK_EVERY // a_step):
            return
        low = low + 1 if progress.regret is not None and progress.regret <= TARGET else 0
        if low > 1:
            raise Reached

    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=work) as home:
        run = Path(home) / "run"
        every = {"eval_steps": LOOK_EVERY // a_step, "max_steps": completions // a_step}
        with contextlib.suppress(Reached):
            train(settings(work, arm, seed, run, **every), on_step=look)
        records = read_metrics(run / "metrics.jsonl")
    points = [r for r in records if r.get("eval_regret") is not None]
    return {
        "arm": arm,
        "seed": seed,
        "limit": completions,
        "completions": [r["step"] * a_step for r in points],
        "regret": [r["eval_regret"] for r in points],
        "invalid": [r["eval_invalid"] for r in points],
        "valid_mass": [r["exact_valid_mass"] for r in points if "exact_valid_mass" in r],
        "seconds": time.monotonic() - started,
    }


def needed(curve: dict[str, Any]) -> tuple[int, bool]:
    """Return the completions up to the first of two looks at or below the target, if it came."""
    low = [regret <= TARGET for regret in curve["regret"]]
    for place in range(1, len(low) - 1):
        if low[place] and low[place + 1]:
            return curve["completions"][place], True
    return curve["limit"], False


def variances(work: Path, draws: int) -> dict[str, float]:
    """Draw the same 8 prompts x 2 again and again; return both variances and mean gradients."""
    import torch
    from transformers import set_seed

    from gptoss_tools.models.loading import load_model
    from gptoss_tools.training.configuring import make_config
    from gptoss_tools.training.exact_actions import against_the_others
    from gptoss_tools.training.grpo import DecisionTrainer
    from gptoss_tools.training.preparation import prepare

    with tempfile.TemporaryDirectory(dir=work) as home:
        wanted = settings(work, "exact 8x2", 0, Path(home) / "run", max_steps=1)
        prepared = prepare(wanted)
        set_seed(0)
        run = DecisionTrainer.build(
            wanted,
            model=load_model(prepared.model, dtype="float32", device="cpu"),
            tokenizer=prepared.tokenizer,
            dataset=prepared.dataset,
            args=make_config(wanted, home, rows=prepared.rows),
        )
        run.model.train()
        run.current_gradient_accumulation_steps = 1
        sampler: Any = run._get_train_sampler()
        drawn = sampler.generation_batch(0).tolist()
        rows = [run.train_dataset[i] for i in drawn]

        def gradient(batch: dict[str, Any]) -> Any:
            run.model.zero_grad()
            run.compute_loss(run.model, batch).backward()
            kept = [p.grad.flatten() for p in run.model.parameters() if p.grad is not None]
            return torch.cat(kept).double()

        found: dict[str, list[Any]] = {"exact": [], "sampled": []}
        for _ in range(draws):
            batch = run._generate_and_score_completions(rows)
            found["exact"].append(gradient(batch))
            rewards = torch.tensor([record["reward"] for record in run.reward.records])
            plain = {k: v for k, v in batch.items() if k not in ("gains", "answers", "decided")}
            found["sampled"].append(
                gradient(plain | {"advantages": against_the_others(rewards, 2)})
            )
    out: dict[str, float] = {"draws": draws}
    for name, gradients in found.items():
        stacked = torch.stack(gradients)
        out[f"{name}_variance"] = float(stacked.var(dim=0).sum())
        # The mean's own variance is in its square, and is taken out.
        square = float(stacked.mean(0).square().sum()) - out[f"{name}_variance"] / draws
        out[f"{name}_mean_norm"] = math.sqrt(max(square, 0.0))
    return out


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval, by Student's t."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), STUDENT.get(len(values), 2.0) * spread


def summarize(curves: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return per arm the completions needed, over the seeds."""
    out: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        own = sorted((c for c in curves if c["arm"] == arm), key=lambda c: c["seed"])
        if own:
            told = [needed(curve) for curve in own]
            mean, half = interval([float(count) for count, _ in told])
            out[arm] = {
                "completions": [count for count, _ in told],
                "mean": mean,
                "half": half,
                "reached": sum(reached for _, reached in told),
                "seeds": [c["seed"] for c in own],
                "seconds": statistics.fmean(c["seconds"] for c in own),
            }
    return out


def ratio(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float]:
    """Return one arm's completions over another's, and the 95 % interval of the paired logs."""
    pairs = zip(one["completions"], other["completions"], strict=True)
    mean, half = interval([math.log(a / b) for a, b in pairs])
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> None:
    """Train what is missing, measure, print, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--completions", type=int, default=3840)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "exact-actions")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    store = asked.work / "variance.json"
    if not store.exists():
        store.write_text(json.dumps(variances(asked.work, asked.draws)))
    variance = json.loads(store.read_text())
    fewer = variance["sampled_variance"] / variance["exact_variance"]
    print(f"variance of a step's gradient, sampled over exact: {fewer:.1f}", flush=True)
    curves = []
    for seed in range(asked.seeds):
        for arm in ARMS:
            kept = asked.work / f"{arm.replace(' ', '-')}-{seed}.json"
            curve = json.loads(kept.read_text()) if kept.exists() else {"limit": 0, "regret": []}
            if arm in asked.arms and curve["limit"] < asked.completions and not needed(curve)[1]:
                curve = learn(asked.work, arm, seed, asked.completions)
                kept.write_text(json.dumps(curve))
            curves.append(curve)
            count, reached = needed(curve)
            said = f"{count}" if reached else f"more than {count}"
            print(f"{arm} seed {seed}: {said}, {curves[-1]['seconds']:.0f} s", flush=True)
    report(curves, variance, asked.out)


def report(curves: list[dict[str, Any]], variance: Any, out: Path | None) -> None:
    """Print the table, and write it where asked."""
    arms = summarize(curves)
    print(f"\n| arm | completions to regret {TARGET} | seeds that got there |\n|---|---|---|")
    for arm, row in arms.items():
        print(
            f"| {arm} | {row['mean']:.0f} ± {row['half']:.0f} "
            f"| {row['reached']} of {len(row['seeds'])} |"
        )
    goals = []
    for one, other in itertools.product(("exact 8x2", "exact 4x2"), ("sampled 8x8", "sampled 8x2")):
        middle, low, high = ratio(arms[one], arms[other])
        print(f"{one} / {other}: {middle:.2f} ({low:.2f} to {high:.2f})")
        name = f"completions to held-out regret {TARGET}, {one} over {other}"
        goals.append(goal(name, middle, 1 / 3, "lower") | {"interval": [low, high]})
    fewer = variance["sampled_variance"] / variance["exact_variance"]
    goals.append(goal("variance of a step's gradient, sampled over exact", fewer, 1.0, "higher"))
    if out:
        record = {
            "asked": {"target": TARGET, "seeds": arms["exact 8x2"]["seeds"]},
            "machine": machine(Path.cwd()),
            "arms": arms,
            "variance": variance,
            "curves": curves,
            "goals": goals,
        }
        write(out, "exact_actions", "python benchmarks/exact_actions.py", record)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    main()
