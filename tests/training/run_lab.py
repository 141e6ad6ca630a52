"""What the tests of whole runs share: a random model in a folder, a table, and one run per call.

`python run_lab.py FOLDER train|resume JSON` runs in a process of its own, to be killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import grpo_lab
import torch
from safetensors.torch import load_file

from gptoss_tools.settings import ResumeSettings, TrainSettings
from gptoss_tools.training.train import Outcome, resume, train

SMALL = {
    "reward": "grpo_lab:hash_reward",
    "invalid_reward": "mask",
    "num_generations": 4,
    "prompts_per_step": 1,
    "gradient_accumulation_steps": 2,
    "max_prompt_length": 200,
    "max_completion_length": 6,
    "max_steps": 6,
    "save_steps": 3,
    "learning_rate": 0.01,
    "lora_r": 2,
    "lora_alpha": 4,
    "device": "cpu",
}


def furnish(folder: Path, rows: int = 5) -> Path:
    """Put a model and a table into `folder`."""
    model = grpo_lab.tiny_model(lora=False)
    model.save_pretrained(folder / "model")
    tokenizer = grpo_lab.byte_tokenizer()
    tokenizer.chat_template = '{{ strftime_now("%Y-%m-%d") }}'
    tokenizer.save_pretrained(folder / "model")
    write_table(folder / "table.csv", rows)
    return folder


def write_table(path: Path, rows: int = 5, first_reward: float = 0.25) -> None:
    """Write a table of two actions."""
    lines = ["prompt,q_action_0,q_action_1,reward_action_0,reward_action_1"]
    for row in range(rows):
        prompt = f"<|start|>user<|message|>case {row}<|end|><|start|>assistant"
        lines.append(f"{prompt},{row},1.5,{first_reward},0.75")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def settings(folder: Path, name: str = "run", **changes) -> TrainSettings:
    """Return the settings of a run in `folder`."""
    own = {
        "model": str(folder / "model"),
        "data": [str(folder / "table.csv")],
        "output_dir": str(folder / name),
    }
    return TrainSettings(**{**SMALL, **own, **changes})


def run(folder: Path, name: str = "run", **changes) -> Outcome:
    """Train a run in `folder` from the beginning to the end."""
    return train(settings(folder, name, **changes))


def go_on(folder: Path, name: str = "run", **changes) -> Outcome:
    """Resume a run in `folder`."""
    return resume(ResumeSettings(run=str(folder / name), **changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter folder."""
    return load_file(folder / "adapter_model.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    """Whether two adapter folders hold the same tensors, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def die_at(function: str, count: int) -> None:
    """Let this process be killed at its `count`-th call of os.fsync or shutil.rmtree."""
    module = shutil if function == "rmtree" else os
    real, left = getattr(module, function), [count]

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, function, counted)


if __name__ == "__main__":
    place, verb, more = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if "die_at" in more:
        die_at(*more.pop("die_at"))
    torch.set_num_threads(1)
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    (run if verb == "train" else go_on)(place, **more)
