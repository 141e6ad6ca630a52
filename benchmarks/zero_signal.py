"""What it gains to leave out groups that teach nothing: useful groups per second, in one run.

    python benchmarks/zero_signal.py [--steps 40] [--temperature 0.05] [--out DIR]

The tiny model on the shipped table, 8 prompts x 8 completions, share_prompts; a low temperature
makes it as sure of its answers as a policy is late in training, so that many groups agree. Each of
`zero_signal` keep, skip and resample trains --steps steps from the same first weights; a group is
useful if its completions did not all earn the same. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from statistics import mean

from goals import goal, write
from measuring import machine

HERE = Path(__file__).resolve().parent
PROMPTS = GROUP = 8
WAYS = ("keep", "skip", "resample")


def figures(home: Path, way: str, steps: int, temperature: float) -> dict[str, float]:
    """Train one way; groups that taught something, and seconds, of a step on average."""
    from gptoss_tools.settings import TrainSettings
    from gptoss_tools.training.train import train

    train(
        TrainSettings(
            model="tiny",
            data=[str(HERE.parent / "data" / "train")],
            output_dir=str(home / way),
            max_steps=steps,
            num_generations=GROUP,
            prompts_per_step=PROMPTS,
            gradient_accumulation_steps=1,
            max_completion_length=40,
            temperature=temperature,
            learning_rate=1e-4,
            share_prompts=True,
            gradient_checkpointing=False,
            save_steps=steps,
            zero_signal=way,
            device="cpu",
            date="2026-01-01",
        )
    )
    lines = (home / way / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    own = [r for r in map(json.loads, lines) if "step_time" in r][1:]  # the first one warms up
    silent = drawn_silent(home / way) if way == "keep" else mean(r["silent_share"] for r in own)
    useful = PROMPTS * (1 - silent)
    seconds = mean(record["step_time"] for record in own)
    return {"useful": useful, "seconds": seconds, "rate": useful / seconds}


def drawn_silent(run: Path) -> float:
    """The share of groups drawn after the first step whose completions all earned the same."""
    with (run / "completions.csv").open(encoding="utf-8", newline="") as file:
        rewards = [row["reward"] for row in csv.DictReader(file)]
    groups = [set(rewards[i : i + GROUP]) for i in range(PROMPTS * GROUP, len(rewards), GROUP)]
    return mean(len(group) == 1 for group in groups)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = {way: figures(Path(home), way, options.steps, options.temperature) for way in WAYS}
    print("| zero_signal | useful groups of 8 | seconds a step | useful groups a second |")
    print("|---|---|---|---|")
    for way, row in found.items():
        print(f"| {way} | {row['useful']:.2f} | {row['seconds']:.3f} | {row['rate']:.1f} |")
    if options.out:
        plain = found["keep"]["rate"]
        goals = [
            goal(
                f"useful groups a second, {way} beside keep",
                found[way]["rate"] / plain,
                1,
                "higher",
            )
            for way in WAYS[1:]
        ]
        record = {"machine": machine(Path.cwd()), "goals": goals, "ways": found}
        write(options.out, "zero_signal", "python benchmarks/zero_signal.py", record)


if __name__ == "__main__":
    main()
