"""A small set of decision prompts, a tokenizer and an untrained model: structure, not skill."""

from __future__ import annotations

import pytest
import torch
from transformers import GptOssForCausalLM

from gptoss_tools.models.tiny import tiny_config
from gptoss_tools.models.tiny_tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """24 rendered prompts of the shape the shipped ones have."""
    head = (
        "<|start|>system<|message|>You are ChatGPT.\nReasoning: medium<|end|><|start|>developer"
        "<|message|># Instructions\n\nRun the cold store. Answer with exactly [k].\n\n<|end|>"
    )
    return [
        f"{head}<|start|>user<|message|>Hour {8 + n % 10:02d}: load {20 + 3 * n} kW, "
        f"tank {(37 * n) % 301:03d} of 300 kWh. Run now: {'yes' if n % 2 else 'no'}.<|end|>"
        "<|start|>assistant"
        for n in range(24)
    ]


@pytest.fixture(scope="session")
def tokenizer(prompts):
    """A tokenizer learned from the prompts."""
    return build_tokenizer(prompts, 420)


@pytest.fixture(scope="session")
def random_model(tokenizer):
    """An untrained tiny model with weights wide enough to make every tensor matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = GptOssForCausalLM(tiny_config(tokenizer))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.2)
    return model.eval()
