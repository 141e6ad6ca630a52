"""Does a policy learn from answers alone? The tiny model, `exact`, no values of actions.

    python benchmarks/answers.py [--max-steps 60] [--out FOLDER]

The shipped decision tables become tables of prompts with the best action as `answer`, and the
policy is trained and measured as on any prepared table (docs/rewards.md has the result).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from gptoss_tools.cli.common import cache_dir
from gptoss_tools.data.decisions import load_table
from gptoss_tools.evaluation.evaluate import evaluate
from gptoss_tools.evaluation.work import prepare
from gptoss_tools.models.tiny_cache import tiny_path
from gptoss_tools.settings import EvaluateSettings, TrainSettings
from gptoss_tools.training.train import train

DATA = Path(__file__).parents[1] / "data"


def write_answers(source: Path, target: Path) -> list[str]:
    """Write prompts with their best action as the answer; return the answers."""
    table = load_table(source)
    answers = [f"[{values.argmax()}]" for values in table.q]
    rows = zip(table.prompts, answers, table.columns["episode"], strict=True)
    lines = [{"prompt": p, "answer": a, "episode": e} for p, a, e in rows]
    target.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return answers


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/answers"))
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    write_answers(DATA / "train", options.out / "train.jsonl")
    answers = write_answers(DATA / "heldout", options.out / "heldout.jsonl")
    tiny_path(cache_dir())
    outcome = train(
        TrainSettings(
            model="tiny",
            date="2026-01-01",
            data=[str(options.out / "train.jsonl")],
            reward=["exact"],
            max_steps=options.max_steps,
            save_steps=options.max_steps,
            num_generations=8,
            prompts_per_step=8,
            gradient_accumulation_steps=1,
            max_completion_length=40,
            learning_rate=2e-3,
            lora_r=16,
            lora_alpha=32,
            loss_type="dapo",
            gradient_checkpointing=False,
            output_dir=str(options.out / "run"),
        ),
        cache_dir=cache_dir(),
    )
    asked = EvaluateSettings(
        target=str(outcome.run),
        data=[str(options.out / "heldout.jsonl")],
        date="2026-01-01",
        max_new_tokens=40,
        batch_size=144,
    )
    reward = evaluate(prepare(asked), cache_dir=cache_dir())["reward"]
    commonest, count = Counter(answers).most_common(1)[0]
    print(f"right answers of {len(answers)}, held out, greedy")
    print(f"  base            {reward['base']:.3f}")
    print(f"  always {commonest}      {count / len(answers):.3f}")
    low, high = reward["ci95"]
    print(f"  {options.max_steps} steps of exact  {reward['mean']:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
