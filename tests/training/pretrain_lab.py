"""What the tests of pretraining share: a text of a few words, small sizes, one run per call.

`python pretrain_lab.py FOLDER train|resume JSON` runs in a process of its own, to be killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from gptoss_tools.core.history import read_metrics
from gptoss_tools.models.scratch import new_config, new_model
from gptoss_tools.models.text_tokenizers import new_tokenizer
from gptoss_tools.settings import PretrainSettings, ResumeSettings
from gptoss_tools.training.train import Outcome, resume, train

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "block_size": 8,
    "windows_per_step": 4,
    "eval_batches": 2,
    "eval_steps": 100,
    "max_steps": 12,
    "save_steps": 6,
    "logging_steps": 1,
    "max_new_tokens": 20,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "device": "cpu",
}


def write_text(path: Path, seed: int = 0, lines: int = 120) -> None:
    """Write lines of few words."""
    chance = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "red", "house"]
    text = [" ".join(chance.choice(words) for _ in range(8)) for _ in range(lines)]
    path.write_text(".\n".join(text), encoding="utf-8")


def furnish(folder: Path) -> Path:
    """Put a text and a GPT-2 with random weights into `folder`."""
    write_text(folder / "text.txt")
    tokenizer = new_tokenizer("character", [(folder / "text.txt").read_text()])
    sizes = settings(folder, model_type="gpt2", block_size=32, hidden_size=32)
    new_model(new_config(sizes, tokenizer, 0.0), 7).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    return folder


def settings(folder: Path, name: str = "run", **changes) -> PretrainSettings:
    """Return the settings of a run in `folder`."""
    own = {"data": [str(folder / "text.txt")], "output_dir": str(folder / name)}
    return PretrainSettings(**{**SMALL, **own, **changes})


def run(folder: Path, name: str = "run", *, on_step=None, on_notice=None, **changes) -> Outcome:
    """Train a run in `folder` from the beginning to the end."""
    return train(settings(folder, name, **changes), on_step=on_step, on_notice=on_notice)


def go_on(folder: Path, name: str = "run", *, on_step=None, on_notice=None, **changes) -> Outcome:
    """Resume a run in `folder` as `gptoss pretrain --resume` does."""
    wanted = PretrainSettings(resume=str(folder / name), **changes)
    return train(wanted, explicit=list(changes), on_step=on_step, on_notice=on_notice)


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    """Return the tensors of what a run has trained."""
    folder = outcome.adapter or outcome.model
    assert folder is not None
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def same_bits(one: Outcome, other: Outcome) -> bool:
    """Whether two runs ended with the same tensors, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


TIMES = ("segment", "seconds", "step_seconds", "tokens_per_second", "eval_seconds")


def history(run: Path) -> list[dict]:
    """Return the records of a run without what the clock says."""
    records = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def signal_at(step: int, number: int):
    """Return a listener that sends this process a signal after a step."""

    def listen(progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), number)

    return listen


if __name__ == "__main__":
    place, verb, more = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(1)
    listener = signal_at(more.pop("die_at"), signal.SIGKILL) if "die_at" in more else None
    if verb == "train":
        run(place, on_step=listener, **more)
    else:
        resume(ResumeSettings(run=str(place / more.pop("name")), **more), on_step=listener)
