"""What the tests of supervised training share: random models in folders, a table, a run per call.

`python sft_lab.py FOLDER train|resume JSON` runs in a process of its own, or in one of several.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpo_lab
import run_lab
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from gptoss_tools.settings import ResumeSettings, SftSettings
from gptoss_tools.training.train import Outcome, resume, train

SMALL = {
    "max_length": 256,
    "max_steps": 6,
    "save_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "prompt_template": "plain",
    "device": "cpu",
}
WORDS = ["red", "green", "blue", "white", "black", "gold", "grey"]


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=288,
            hidden_size=32,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_hidden_layers=2,
            pad_token_id=257,
            dtype="float32",
        )
    )


def gpt_oss() -> torch.nn.Module:
    return grpo_lab.tiny_model(lora=False)


MAKERS = {"gptoss": gpt_oss, "llama": llama}


def furnish(folder: Path, kind: str = "gptoss") -> Path:
    """Put a model and a table of seven rows into `folder`."""
    MAKERS[kind]().save_pretrained(folder / "model")
    grpo_lab.byte_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"instruction": f"Say {word}" + "!" * n, "output": word} for n, word in enumerate(WORDS)
    ]
    write(folder / "table.jsonl", rows)
    return folder


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(folder: Path, name: str = "run", **changes) -> SftSettings:
    """Return the settings of a run in `folder`."""
    own = {
        "model": str(folder / "model"),
        "data": [str(folder / "table.jsonl")],
        "output_dir": str(folder / name),
    }
    return SftSettings(**{**SMALL, **own, **changes})


def run(folder: Path, name: str = "run", **changes) -> Outcome:
    """Train a run in `folder` from the beginning to the end."""
    return train(settings(folder, name, **changes))


def go_on(folder: Path, name: str = "run", **changes) -> Outcome:
    """Resume a run in `folder`."""
    return resume(ResumeSettings(run=str(folder / name), **changes))


def same_bits(one: Path, other: Path) -> bool:
    """Whether two run folders hold the same adapter, or the same model, bit for bit."""
    if (one / "adapter").is_dir():
        return run_lab.same_bits(one / "adapter", other / "adapter")
    a, b = (load_file(run / "model/model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


if __name__ == "__main__":
    place, verb, more = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if "die_at" in more:
        run_lab.die_at(*more.pop("die_at"))
    torch.set_num_threads(1)
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    (run if verb == "train" else go_on)(place, **more)
