"""What it saves to compute each prompt once for its group, beside TRL's way, in one run.

    python benchmarks/shared_prompts.py [--prompt 1000] [--completion 64] [--group 16] [--out DIR]

The tiny model in float32, LoRA on attention, completions of exactly the asked length. Measured in
turn, so that whatever else the machine does meets both: forward, loss and backward of one group;
drawing one group (with 32 tokens); and whole steps of TRL's own GRPOTrainer and of ours with
`share_prompts`. Prints a Markdown table of ratios, and with --out writes shared_prompts.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from goals import goal, write
from measuring import machine

COMMAND = "python benchmarks/shared_prompts.py"
DRAWN = 32  # tokens of the generation measurement
GOALS = {"forward, loss, backward": 5.0, "generation": 3.0, "whole step": 4.0}


def furnish(folder: Path, prompt: int, model: Path | None = None, rows: int = 8) -> Path:
    """Write a table of prompts with `prompt` tokens of a model (default: tiny); return it."""
    from transformers import AutoTokenizer

    from gptoss_tools.models.tiny_cache import tiny_path

    tokenizer = AutoTokenizer.from_pretrained(model or tiny_path())
    lines = ["prompt,q_action_0,q_action_1,reward_action_0,reward_action_1"]
    for row in range(rows):
        start, end = f"<|start|>user<|message|>case {row}:", "<|end|><|start|>assistant"
        missing = prompt - len(tokenizer(start + end)["input_ids"])
        text = start + "7" * 3 * missing
        while len(tokenizer(text + end)["input_ids"]) > prompt:
            text = text[:-1]
        lines.append(f"{text}{end},0,1,0.25,0.75")
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def settings(
    table: Path, completion: int, group: int, steps: int, share: bool, **others: Any
) -> Any:
    """Settings of `steps` steps on a table, completions of exactly one length."""
    from gptoss_tools.settings import TrainSettings

    own: dict[str, Any] = {
        "model": "tiny",
        "data": [str(table)],
        "output_dir": str(table.parent / f"run-{share}-{steps}-{completion}"),
        "max_steps": steps,
        "num_generations": group,
        "prompts_per_step": 1,
        "gradient_accumulation_steps": 1,
        "max_prompt_length": 100_000,
        "max_completion_length": completion,
        "gradient_checkpointing": False,
        "save_steps": 10_000,
        "device": "cpu",
        "dtype": "float32",
        "lora_r": 16,
        "lora_alpha": 32,
        "date": "2026-01-01",
        "share_prompts": share,
        "reward": ["shared_prompts:by_length"],
        "trainer": {"generation_kwargs": {"min_new_tokens": completion}},
    }
    return TrainSettings(**(own | others))


def by_length(decision, rewards_K, completion, row):
    """A reward that differs within a group: the loss must not vanish."""
    return len(completion.transcript()) % 7 / 7


def trainer(wanted: Any, stock: bool) -> Any:
    """TRL's trainer, or ours, on the same data and the same first weights."""
    from peft import get_peft_model
    from transformers import set_seed
    from trl.trainer.grpo_trainer import GRPOTrainer

    from gptoss_tools.models.branch_attention import fuses
    from gptoss_tools.models.loading import load_model
    from gptoss_tools.models.lora import lora_config
    from gptoss_tools.training.configuring import make_config
    from gptoss_tools.training.grpo import DecisionTrainer
    from gptoss_tools.training.preparation import prepare
    from gptoss_tools.training.rewarding import DecisionReward

    prepared = prepare(wanted)
    args = make_config(wanted, wanted.output_dir, rows=prepared.rows)
    args.save_strategy = "no"
    model = load_model(
        prepared.model, dtype=wanted.dtype, device=wanted.device, experts=prepared.settings.experts
    )
    set_seed(wanted.seed)
    options = {"args": args, "train_dataset": prepared.dataset}
    reward = DecisionReward.from_settings(wanted, prepared.tokenizer)
    adapted = get_peft_model(model, lora_config(r=wanted.lora_r, alpha=wanted.lora_alpha))
    if stock:
        return GRPOTrainer(
            adapted, reward_funcs=reward, processing_class=prepared.tokenizer, **options
        )
    return DecisionTrainer(
        model=adapted,
        tokenizer=prepared.tokenizer,
        reward=reward,
        share_prompts=wanted.share_prompts,
        tokens_per_forward=wanted.tokens_per_forward,
        fused_attention=wanted.share_prompts and fuses(wanted.attn_implementation, model.device),
        **options,
    )


def in_turn(ways: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each way, measured one after the other, round by round."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):  # the first round warms up
        for place, way in enumerate(ways):
            start = time.perf_counter()
            way()
            seconds[place].append(time.perf_counter() - start)
    return [median(own[1:]) for own in seconds]


def loss_and_backward(table: Path, completion: int, group: int, rounds: int) -> list[float]:
    """Score one group and go back through it, TRL's way and shared."""
    run = trainer(settings(table, completion, group, 1, True), stock=False)
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    rows = [run.train_dataset[i] for i in run._get_train_sampler().generation_batch(0).tolist()]
    batch = run._prepare_inputs(rows)
    assert bool(batch["completion_mask"].all()), "completions have the asked length"
    batch["advantages"] = torch.linspace(-1, 1, len(rows))

    def once(share: bool) -> None:
        run.share_prompts = share
        run.model.zero_grad()
        run.compute_loss(run.model, batch).backward()

    return in_turn([lambda: once(False), lambda: once(True)], rounds)


def generation(table: Path, group: int, rounds: int) -> list[float]:
    """Draw one group, TRL's way and with the prompt read once."""
    run = trainer(settings(table, DRAWN, group, 1, True), stock=False)
    run.model.train()
    rows = [run.train_dataset[i] for i in run._get_train_sampler().generation_batch(0).tolist()]
    prompts = run._tokenize_prompts([row["prompt"] for row in rows])[0]

    def once(share: bool) -> None:
        run.share_prompts = share
        run._generate_single_turn(prompts, None, {}, group)

    return in_turn([lambda: once(False), lambda: once(True)], rounds)


def whole_steps(table: Path, completion: int, group: int, steps: int) -> list[float]:
    """Seconds a step of whole trainings: TRL's GRPOTrainer, and ours with share_prompts."""
    seconds = []
    for stock in (True, False):
        run = trainer(settings(table, completion, group, steps, not stock), stock)
        with contextlib.redirect_stdout(io.StringIO()):
            run.train()
        seconds.append(median(r["step_time"] for r in run.state.log_history if "step_time" in r))
    return seconds


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        table = furnish(Path(home), asked.prompt)
        size = (asked.completion, asked.group)
        measured = {
            "forward, loss, backward": loss_and_backward(table, *size, asked.rounds),
            "generation": generation(table, asked.group, asked.rounds),
            "whole step": whole_steps(table, *size, asked.steps),
        }
    rows = [
        goal(f"shared prompts: {name}, times TRL's speed", plain / shared, GOALS[name], "higher")
        | {"trl_seconds": plain, "shared_seconds": shared, "what": name}
        for name, (plain, shared) in measured.items()
    ]
    print(f"P {asked.prompt}, C {asked.completion} (generation {DRAWN}), G {asked.group}\n")
    print("| | TRL, s | prompts shared, s | ratio | goal |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['what']} | {row['trl_seconds']:.2f} | {row['shared_seconds']:.2f} | "
            f"{row['value']:.1f} | {row['goal']:.0f} |"
        )
    if asked.out:
        facts = {"asked": {**vars(asked), "out": None}, "machine": machine(Path.cwd())}
        write(asked.out, "shared_prompts", COMMAND, facts | {"goals": rows})


if __name__ == "__main__":
    main()
