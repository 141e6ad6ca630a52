"""Run under torchrun by test_grpo_ranks: score groups with weights sharded over the processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpo_lab as lab
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from trl.trainer.utils import add_fused_lm_head

from gptoss_tools.models.branch_attention import follow_branches
from gptoss_tools.training.shared_prefix import score


def furnish():
    model = lab.tiny_model(lora=False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    follow_branches(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def main(folder: Path) -> None:
    """Two groups, one on each process, in two forwards here and four there, and all as one."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(0, 250, (2, 20), generator=generator).repeat_interleave(4, 0)
    answers = torch.randint(0, 250, (8, 9), generator=generator)
    ids = torch.cat([prompts, answers], 1)
    mask = torch.ones_like(ids)
    whole = furnish()
    expected, _ = score(whole, ids, mask, 9)
    expected.mean().backward()

    sharded = furnish()
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    forwards: list[int] = []

    def most(number: int) -> int:
        together = torch.tensor([number])
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
        forwards.extend([number, int(together)])
        return int(together)

    mine = slice(4 * rank, 4 * rank + 4)
    # A prompt's 19 tokens and 9 for each completion: 4 of them in two parts, or one by one.
    found, _ = score(sharded, ids[mine], mask[mine], 9, budget=(40, 29)[rank], agree=most)
    found.mean().backward()
    ours = sharded.model.layers[0].self_attn.q_proj.weight.grad.full_tensor()
    right = whole.model.layers[0].self_attn.q_proj.weight.grad
    (folder / f"rank{rank}.json").write_text(
        json.dumps(
            {
                "forwards": forwards,
                "off": (found - expected[mine]).abs().max().item(),
                "gradient_off": ((ours - right).norm() / right.norm()).item(),
            }
        )
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
