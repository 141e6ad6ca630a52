"""A gpt-oss of two layers that was never trained: its answers are garbage, and always the same."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    from gptoss_tools.chat.harmony import render

    texts = [f"hour {h} load {h * 7} kW" + " and carbon rises" * (h % 4) for h in range(11)]
    return [
        render(
            [{"role": "developer", "content": "Answer [k]."}, {"role": "user", "content": text}],
            date="2026-01-01",
        )
        for text in texts
    ]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory, prompts):
    """A checkpoint folder in the published layout."""
    import torch
    from transformers import GptOssForCausalLM

    from gptoss_tools.models.layout import write_checkpoint
    from gptoss_tools.models.tiny import tiny_config
    from gptoss_tools.models.tiny_tokenizer import build_tokenizer

    tokenizer = build_tokenizer(prompts, 400)
    config = tiny_config(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = GptOssForCausalLM(config).state_dict()
        state = {k: v if v.ndim == 1 else torch.randn_like(v) * 0.3 for k, v in state.items()}
    folder = tmp_path_factory.mktemp("base") / "untrained"
    return write_checkpoint(state, config, folder, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def policy(untrained):
    from gptoss_tools.evaluation.policy import load_policy

    return load_policy(untrained)
