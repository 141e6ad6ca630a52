"""Run under torchrun by test_grpo_ranks: train, resume, and say what each process saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpo_lab as lab
import torch

CHANGES = {
    "rows": 5,
    "num_generations": 4,
    "prompts_per_step": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "max_completion_length": 4,
    "max_steps": 4,
    "save_steps": 1,
    "seed": 2,
}


def main(folder: Path, world: int) -> None:
    """Four steps at once, then steps 2 to 4 again from the first checkpoint (mid buffer)."""
    records: list = []
    straight = lab.trainer(
        folder / "straight", on_completions=records.extend, world=world, **CHANGES
    )
    straight.train()
    again = lab.trainer(folder / "again", world=world, **CHANGES)
    again.train(resume_from_checkpoint=str(folder / "straight" / "step-000001"))
    shared = lab.trainer(
        folder / "shared",
        world=world,
        share_prompts=True,
        tokens_per_forward=45,  # groups of the longer prompts are cut, those of the shorter not
        **{**CHANGES, "max_steps": 1},
    )
    forwards: list[int] = []
    hook = shared.model.register_forward_pre_hook(
        lambda module, args, more: forwards.append(more["input_ids"].numel()), with_kwargs=True
    )
    shared.train()
    hook.remove()
    one, other = lab.weights(straight), lab.weights(again)
    rank = straight.args.process_index
    (folder / f"rank{rank}.json").write_text(
        json.dumps(
            {
                "records": [[r["step"], r["micro_step"], r["row"]] for r in records],
                "equal_after_resume": all(torch.equal(one[n], other[n]) for n in one),
                "weights": {n: p.double().sum().item() for n, p in one.items()},
                "first": [
                    straight.state.log_history[0][n] for n in ("loss", "grad_norm", "reward")
                ],
                "shared": [shared.state.log_history[0][n] for n in ("loss", "grad_norm", "reward")],
                "forwards": forwards,
                "local_batch": straight.args.per_device_train_batch_size,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
