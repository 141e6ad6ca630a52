"""A small gpt-oss in the published layout, as the Hub delivers it, and adapters for it."""

from __future__ import annotations

import pytest

TEXTS = ["<|start|>user<|message|>load 40 kW, hour 9<|end|><|start|>assistant"]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Three shards numbered from 0, layers that span them, and the folders that must not count."""
    import torch
    from transformers import GptOssForCausalLM

    from gptoss_tools.models.layout import write_checkpoint
    from gptoss_tools.models.tiny import tiny_config
    from gptoss_tools.models.tiny_tokenizer import build_tokenizer

    tokenizer = build_tokenizer(TEXTS, 400)
    config = tiny_config(tokenizer)
    config.num_hidden_layers = 3
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = GptOssForCausalLM(config).state_dict()
        state = {k: v if v.ndim == 1 else torch.randn_like(v) * 0.2 for k, v in state.items()}
    folder = tmp_path_factory.mktemp("hub") / "base"
    write_checkpoint(state, config, folder, tokenizer=tokenizer, shards=3)
    for other in ("original", "metal"):
        (folder / other).mkdir()
        (folder / other / "model.safetensors").write_bytes(b"another layout")
    (folder / "README.md").write_text("the base's own card\n")
    (folder / "LICENSE").write_text("terms\n")
    return folder


@pytest.fixture(scope="session")
def make_adapter(base):
    """Write a PEFT adapter with random B, as training leaves it; `size` scales the change."""
    import torch
    from peft import LoraConfig, get_peft_model

    from gptoss_tools.models.loading import load_model

    def make(folder, size=0.05, **settings):
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            model = get_peft_model(load_model(base), LoraConfig(**settings))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=size)
                elif "magnitude" in name:
                    parameter.data.mul_(torch.rand_like(parameter) * 0.2 + 0.9)
                elif parameter.requires_grad and "lora_A" not in name:
                    parameter.data.add_(torch.randn_like(parameter) * size)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def adapter(make_adapter, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("run") / "adapter")


@pytest.fixture(scope="session")
def expert_adapter(make_adapter, tmp_path_factory):
    """LoRA on attention and experts, in the layout of `lora_target_modules` with `experts`."""
    from gptoss_tools.models.lora import lora_config

    wanted = lora_config(target_modules=["all-linear", "experts"])
    folder = tmp_path_factory.mktemp("run") / "expert-adapter"
    return make_adapter(
        folder,
        target_modules=wanted.target_modules,
        target_parameters=wanted.target_parameters,
    )
