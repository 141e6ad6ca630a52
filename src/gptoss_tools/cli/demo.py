"""gptoss demo: every stage is the real command line, run as a user would run it.

Stages are processes of their own, so that the interruption can be a real kill. The table at the end
compares the greedy policy on held-out episodes with rules, dice and the optimum.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from ..console import align, out
from ..errors import RunFolderError
from ..load import Loaded
from ..settings import DemoSettings
from .evaluate import interval, verdict
from .options import command
from .stages import Stages

TRAIN_EPISODES, HELDOUT_EPISODES = 48, 12
HELDOUT_SEED = 1000  # added to the seed: no episode is in both tables
SAMPLES = 4  # answers drawn per held-out row beside the greedy one
NAMES = {
    "policy": "after training",
    "base": "before training",
    "best": "best possible",
    "fixed": "best fixed action",
    "uniform": "uniform over actions",
}
LOOP_NAMES = {"best": "optimal", "uniform": "random"}
CONFIG = """\
# What the demo trains with: small groups, a rate for a tiny model, and a price for invalid answers.
model = "tiny"
date = "2026-01-01"

[train-grpo]
data = ["{folder}/data/train_harmony_with_reward.csv"]
output_dir = "{folder}/run"
max_steps = {max_steps}
save_steps = 50
eval_steps = 25
eval_data = ["{folder}/data/heldout_harmony_with_reward.csv"]
eval_batch_size = 144
seed = {seed}
num_generations = 8
prompts_per_step = 8
gradient_accumulation_steps = 1
max_completion_length = 40
learning_rate = 2e-3
lora_r = 16
lora_alpha = 32
loss_type = "dapo"
invalid_reward = "worst"
gradient_checkpointing = false
logging_steps = 1
"""


@command(
    "demo",
    DemoSettings,
    examples=["gptoss demo", "gptoss demo --out /tmp/demo --json", "gptoss demo --max-steps 50"],
)
def demo(settings: DemoSettings, loaded: Loaded) -> None:
    """Run the whole of gptoss on the tiny model, from data to export.

    Builds the tiny gpt-oss, makes, converts, scores and checks a table, trains, is killed and goes
    on, tests, exports, evaluates and reports. Takes a few minutes on 2 cores; no Hub, no account,
    no GPU.
    """
    folder = Path(settings.out)
    if settings.dry_run:
        plan = {"folder": folder, "max_steps": settings.max_steps, "would_write": True}
        out.result(plan, f"would run the whole way in {folder} and write nothing elsewhere")
        return
    _clear(folder, settings.overwrite)
    out.result(*_walk(folder, settings))
    out.hint(f"gptoss generate {folder}/run --prompt-file PROMPT.txt")


def _walk(folder: Path, settings: DemoSettings) -> tuple[dict[str, Any], str]:
    started = time.monotonic()
    config = folder / "gptoss.toml"
    stages = Stages(config, _environment())
    fields = {"folder": folder.as_posix(), "max_steps": settings.max_steps, "seed": settings.seed}
    config.write_text(CONFIG.format(**fields), encoding="utf-8")
    data, run, export = folder / "data", folder / "run", folder / "export"
    train, heldout = data / "train.csv", data / "heldout.csv"
    series = folder / "series"
    for path, episodes, seed, more in (
        (train, TRAIN_EPISODES, settings.seed, ()),
        (heldout, HELDOUT_EPISODES, settings.seed + HELDOUT_SEED, ("--write-series", str(series))),
    ):
        stages.run(
            "make-dataset",
            *("make-dataset", "--out", str(path), "--episodes", str(episodes)),
            *("--seed", str(seed), "--on-path-rows", "6", "--off-path-rows", "6", *more),
        )
    stages.run("convert-harmony", "convert-harmony", str(data))
    stages.run("calc-reward", "calc-reward", str(data), "--method", "log-regret")
    stages.run("check-data", "check-data", str(data))
    table = str(data / "heldout_harmony_with_reward.csv")
    ask = ("--data", table, "--max-new-tokens", "40", "--batch-size", "144")
    middle = max(1, settings.max_steps * 2 // 5)
    metrics = run / "metrics.jsonl"
    reached = stages.kill_at("train-grpo", middle, metrics, "train-grpo")
    stages.run("resume", "resume", str(run))
    stages.run("test-adapter", "test-adapter", str(run), "--data", table, "--max-new-tokens", "40")
    stages.run("export", "export", str(run), "--out", str(export))
    loop = ("--closed-loop", str(series), "--samples", str(SAMPLES))
    after = stages.run("evaluate", "evaluate", str(run), *ask, *loop)
    exported = stages.run("generate", "generate", str(export), *ask)
    report = stages.run("report", "report", str(run))
    found = {policy["name"]: policy for policy in after["policies"]}
    result = {
        "reward_uniform": after["reward"]["uniform"],
        "reward_fixed": after["reward"]["fixed"],
        "reward_before": after["reward"]["base"],
        "reward_after": after["reward"]["mean"],
        "reward_exported": exported["reward"],
        "reward_best": after["reward"]["best"],
        "regret_before": after["regret"]["base"],
        "regret_after": after["regret"]["mean"],
        "regret_exported": exported["regret"],
        "difference": after["regret"]["difference"],
        "invalid_before": found["base"]["invalid"],
        "invalid_after": after["invalid"]["total"],
        "kg_co2": after["kg_co2"],
        "killed_after_step": reached,
        "report": report["report"],
        "seconds": time.monotonic() - started,
        "stages": stages.seconds,
    }
    return result, _table(result, after, exported)


def _table(result: dict[str, Any], after: dict[str, Any], exported: dict[str, Any]) -> str:
    rows = [
        {
            "policy": NAMES.get(policy["name"], f"rule: {policy['name']}"),
            "regret": policy["regret"],
            "95 %": interval(policy["ci95"]),
            "mean reward": policy["reward"],
            "kgCO2 a series": result["kg_co2"].get(LOOP_NAMES.get(policy["name"], policy["name"])),
            "invalid": policy["invalid"],
        }
        for policy in after["policies"]
    ]
    times = [{"stage": name, "seconds": spent} for name, spent in result["stages"].items()]
    return (
        f"greedy policy on {after['n_rows']} held-out decisions of {after['n_episodes']} episodes, "
        f"and driving the plant through these episodes\n{align(rows)}\n"
        f"{verdict(after['regret'])}\n"
        f"exported to MXFP4: regret {exported['regret']:.4g}, mean reward {exported['reward']:.4g}"
        f"\n\n{align(times)}\nall of it: {result['seconds']:.0f} s\nreport: {result['report']}"
    )


def _clear(folder: Path, overwrite: bool) -> None:
    """Make the folder; remove an older demo only when told to, and nothing that is not one."""
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"`{folder}` is a file, not a folder", "name a folder with --out")
    if folder.exists() and any(folder.iterdir()):
        is_demo = (folder / "gptoss.toml").exists() and (folder / "data").exists()
        if not overwrite or not is_demo:
            raise RunFolderError(
                f"`{folder}` is not empty",
                "choose another folder with --out"
                + (", or --overwrite the older demo" if is_demo else ""),
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _environment() -> dict[str, str]:
    """Return the environment without settings, which would make another demo of this one."""
    keep = ("GPTOSS_CACHE", "GPTOSS_DEBUG")
    return {k: v for k, v in os.environ.items() if not k.startswith("GPTOSS_") or k in keep}
