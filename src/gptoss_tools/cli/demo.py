"""gptoss demo: every stage is the real command line, run as a user would run it.

Stages are processes of their own, so that the interruption can be a real kill. The table at the end
compares the greedy policy on held-out episodes with what a table alone could tell.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import align, out
from ..errors import GptossError, RunFolderError
from ..load import Loaded
from ..settings import DemoSettings
from .options import command

TRAIN_EPISODES, HELDOUT_EPISODES = 48, 12
HELDOUT_SEED = 1000  # added to the seed: no episode is in both tables
CONFIG = """\
# What the demo trains with: small groups, a rate for a tiny model, and a price for invalid answers.
model = "tiny"
date = "2026-01-01"

[train-grpo]
data = ["{folder}/data/train_harmony_with_reward.csv"]
output_dir = "{folder}/run"
max_steps = {max_steps}
save_steps = 50
seed = {seed}
num_generations = 8
prompts_per_step = 8
gradient_accumulation_steps = 1
max_completion_length = 40
learning_rate = 2e-3
lora_r = 16
lora_alpha = 32
loss_type = "dapo"
invalid_reward = 0.0
gradient_checkpointing = false
logging_steps = 1
"""


class Stages:
    """Runs command lines one after another and remembers how long each took."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, *arguments: str) -> dict[str, Any]:
        """Run `gptoss ARGUMENTS --json`; return its document. Raises GptossError if it fails."""
        line, started = self._announce(arguments)
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, env=_environment())
        self._account(stage, started)
        if done.returncode:
            raise GptossError(
                f"`gptoss {shlex.join(arguments)}` ended with exit code {done.returncode}"
            )
        return json.loads(done.stdout)

    def kill_at(self, stage: str, step: int, metrics: Path, *arguments: str) -> int:
        """Run a training and kill it without warning once `step` is done; return the step."""
        line, started = self._announce(arguments)
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=_environment())
        try:
            while process.poll() is None and _steps(metrics) < step:
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        self._account(stage, started)
        reached = _steps(metrics)
        if reached < step:
            raise GptossError(f"`gptoss {shlex.join(arguments)}` stopped at step {reached}")
        out.notice(f"killed (SIGKILL) after step {reached}")
        return reached

    def _announce(self, arguments: Sequence[str]) -> tuple[list[str], float]:
        """Show the command line; return it in full, and the time."""
        line = [*arguments, "--config", str(self.config)]
        out.notice(f"$ gptoss {shlex.join(line)}")
        quiet = ["--quiet"] if out.mode == "quiet" else []
        program = [sys.executable, "-m", "gptoss_tools"]
        return [*program, *line, "--json", *quiet], time.monotonic()

    def _account(self, stage: str, started: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started


@command(
    "demo",
    DemoSettings,
    examples=["gptoss demo", "gptoss demo --out /tmp/demo --json", "gptoss demo --max-steps 50"],
)
def demo(settings: DemoSettings, loaded: Loaded) -> None:
    """Run the whole of gptoss on the tiny model, from data to export.

    Builds the tiny gpt-oss, makes, converts, scores and checks a table, trains, is killed and goes
    on, tests, exports and generates. Takes a few minutes on 2 cores; no Hub, no account, no GPU.
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
    stages = Stages(config)
    fields = {"folder": folder.as_posix(), "max_steps": settings.max_steps, "seed": settings.seed}
    config.write_text(CONFIG.format(**fields), encoding="utf-8")
    data, run, export = folder / "data", folder / "run", folder / "export"
    train, heldout = data / "train.csv", data / "heldout.csv"
    for path, episodes, seed in (
        (train, TRAIN_EPISODES, settings.seed),
        (heldout, HELDOUT_EPISODES, settings.seed + HELDOUT_SEED),
    ):
        stages.run(
            "make-dataset",
            *("make-dataset", "--out", str(path), "--episodes", str(episodes)),
            *("--seed", str(seed), "--on-path-rows", "6", "--off-path-rows", "6"),
        )
    stages.run("convert-harmony", "convert-harmony", str(data))
    stages.run("calc-reward", "calc-reward", str(data), "--tau", "0.05")
    stages.run("check-data", "check-data", str(data))
    table = str(data / "heldout_harmony_with_reward.csv")
    ask = ("--data", table, "--max-new-tokens", "40", "--batch-size", "128")
    before = stages.run("generate", "generate", "tiny", *ask)
    middle = max(1, settings.max_steps * 2 // 5)
    metrics = run / "metrics.jsonl"
    reached = stages.kill_at("train-grpo", middle, metrics, "train-grpo")
    stages.run("resume", "resume", str(run))
    stages.run("test-adapter", "test-adapter", str(run), "--data", table, "--max-new-tokens", "40")
    stages.run("export", "export", str(run), "--out", str(export))
    after = stages.run("generate", "generate", str(run), *ask)
    exported = stages.run("generate", "generate", str(export), *ask)
    result = {
        "reward_uniform": after["reward_uniform"],
        "reward_fixed": after["reward_fixed"],
        "reward_before": before["reward"],
        "reward_after": after["reward"],
        "reward_exported": exported["reward"],
        "reward_best": after["reward_best"],
        "invalid_before": before["invalid"],
        "invalid_after": after["invalid"],
        "killed_after_step": reached,
        "seconds": time.monotonic() - started,
        "stages": stages.seconds,
    }
    return result, _table(result, after["rows"])


def _table(result: dict[str, Any], rows: int) -> str:
    names = {
        "uniform over actions": "reward_uniform",
        "before training": "reward_before",
        "best fixed action": "reward_fixed",
        "after training": "reward_after",
        "after export to MXFP4": "reward_exported",
        "best possible": "reward_best",
    }
    rewards = [{"policy": name, "mean reward": result[key]} for name, key in names.items()]
    times = [{"stage": name, "seconds": spent} for name, spent in result["stages"].items()]
    return (
        f"greedy policy on {rows} held-out decisions\n{align(rewards)}\n\n"
        f"invalid answers: {result['invalid_before']:.1%} before, "
        f"{result['invalid_after']:.1%} after\n\n"
        f"{align(times)}\nall of it: {result['seconds']:.0f} s"
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


def _steps(metrics: Path) -> int:
    """Return how many steps the run has logged."""
    try:
        return metrics.read_text(encoding="utf-8").count("\n")
    except FileNotFoundError:
        return 0
