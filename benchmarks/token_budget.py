"""What `--tokens-per-forward` saves and costs: memory and seconds of one micro-step.

    python benchmarks/token_budget.py [--prompts 8] [--prompt 500] [--completion 100] [--group 8]

Forward, loss and backward of groups that share their prompts, ragged completions, on a gpt-oss with
random weights (4 layers of width 512, float32, gradient checkpointing), at once and within budgets,
each in a process of its own. The memory is the most the process held beyond its weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import measuring
from goals import write

COMMAND = "python benchmarks/token_budget.py"
BUDGETS = (None, 8192, 4096, 2048)


def worker(budget: int | None, prompts: int, prompt: int, completion: int, group: int) -> None:
    """Measure one budget here and print its figures as the last line."""
    import psutil
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from gptoss_tools.models.branch_attention import follow_branches
    from gptoss_tools.training.shared_prefix import score

    torch.manual_seed(0)
    model: Any = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=4096,
            hidden_size=512,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            num_local_experts=8,
            attn_implementation="eager",
        )
    )
    model.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)  # an adapter's place
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    follow_branches(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    rows = prompts * group
    ids = torch.randint(0, 4096, (prompts, prompt)).repeat_interleave(group, 0)
    ids = torch.cat([ids, torch.randint(0, 4096, (rows, completion))], 1)
    lengths = torch.randint(completion // 2, completion + 1, (rows, 1))
    mask = torch.arange(prompt + completion) < prompt + lengths
    held = psutil.Process().memory_info().rss
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, more: sizes.append(more["input_ids"].numel()), with_kwargs=True
    )
    start = time.perf_counter()
    logps, _ = score(model, ids, mask.long(), completion, budget=budget)
    (logps * torch.linspace(-1, 1, rows).unsqueeze(1)).mean().backward()
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    facts = {
        "forwards": len(sizes),
        "largest": max(sizes),
        "tokens": sum(sizes),
        "seconds": time.perf_counter() - start,
        "gradient": gradient.norm().item(),
        "held": held,
    }
    print("\n" + json.dumps(facts))


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = {"prompts": 8, "prompt": 500, "completion": 100, "group": 8}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    shape = {name: getattr(asked, name) for name in sizes}
    if asked.worker:
        worker(json.loads(asked.worker), **shape)
        return
    rows = []
    for budget in BUDGETS:
        command = [sys.executable, Path(__file__).resolve(), "--worker", json.dumps(budget)]
        for name, value in shape.items():
            command += [f"--{name}", value]
        child = measuring.run(command)
        facts = json.loads(child.said.splitlines()[-1])
        rows.append({"budget": budget, **facts, "peak_beyond": child.peak_rss - facts["held"]})
    print("| tokens per forward | forwards | tokens | seconds | peak beyond the weights, GB |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['budget'] or 'all'} | {row['forwards']} | {row['tokens']} | "
            f"{row['seconds']:.1f} | {row['peak_beyond'] / 1e9:.2f} |"
        )
    if asked.out:
        facts = {"asked": shape, "machine": measuring.machine(Path.cwd()), "rows": rows}
        write(asked.out, "token_budget", COMMAND, facts)


if __name__ == "__main__":
    main()
