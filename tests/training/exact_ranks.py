"""Run under torchrun by test_exact_ranks: two exact steps, and what each process saw."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import grpo_lab as lab
from test_exact_actions import SAID


def train(folder: Path, world: int) -> dict:
    """Two steps of 2 prompts x 4; completions follow from the prompt and the place in its group."""
    records: list = []
    run = lab.trainer(
        folder,
        on_completions=records.extend,
        action_gradient="exact",
        reward="decision",
        invalid_reward="worst",
        n_actions=11,
        num_generations=4,
        prompts_per_step=2,
        max_completion_length=33,
        max_steps=2,
        save_steps=100,
        world=world,
    )
    said = [run.processing_class(text=text)["input_ids"] for text in SAID]

    def draw(prompt_ids, *more):
        first = run.accelerator.process_index * len(prompt_ids)
        picks = [(len(ids) + first + i) % len(said) for i, ids in enumerate(prompt_ids)]
        return [said[pick][:33] for pick in picks], None

    run._generate_single_turn = draw
    run.train()
    return {
        "expected": [[r["step"], r["row"], r["expected_reward"]] for r in records],
        "weights": {n: p.double().sum().item() for n, p in lab.weights(run).items()},
        "logged": [h["exact/value"] for h in run.state.log_history if "exact/value" in h],
        "odd": list(run.odd_answers),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = train(place / "run", int(sys.argv[2]))
    (place / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
