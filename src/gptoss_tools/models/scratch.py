"""New small language models from their sizes, and what they weigh.

gpt-oss and GPT-2 are transformers' own, the bigram is `models.bigram`'s. All can be read back with
AutoModelForCausalLM.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gptoss_tools.models.bigram import BigramConfig
from gptoss_tools.settings import NewModelSettings


def new_config(
    settings: NewModelSettings, tokenizer: PreTrainedTokenizerBase, router_aux_loss_coef: float
) -> PreTrainedConfig:
    """Return the config of a new model for this tokenizer; positions end with the window."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_hidden_layers,
        "num_attention_heads": settings.num_attention_heads,
        "max_position_embeddings": settings.block_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if settings.model_type == "bigram":
        inner = settings.intermediate_size
        return BigramConfig(**sizes, dropout=settings.dropout, intermediate_size=inner)
    if settings.model_type == "gpt2":
        rates: dict[str, Any] = dict.fromkeys(
            ["attn_pdrop", "embd_pdrop", "resid_pdrop"], settings.dropout
        )
        return GPT2Config(**sizes, **rates, n_inner=settings.intermediate_size)
    heads = settings.num_attention_heads
    return GptOssConfig(
        **sizes,
        attention_dropout=settings.dropout,
        head_dim=settings.hidden_size // heads,
        intermediate_size=settings.intermediate_size or settings.hidden_size,
        num_key_value_heads=settings.num_key_value_heads or (heads if heads % 2 else heads // 2),
        num_local_experts=settings.num_local_experts,
        num_experts_per_tok=settings.num_experts_per_tok,
        router_aux_loss_coef=router_aux_loss_coef,
        # The published one stretches 4096 positions; a new model has seen all of its own.
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def new_model(
    config: PreTrainedConfig, seed: int, *, experts_implementation: str = "eager"
) -> PreTrainedModel:
    """Make a model with random weights, the same for the same seed; float32, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options: dict[str, Any] = {}
        if isinstance(config, GptOssConfig):
            options["attn_implementation"] = "eager"
            options["experts_implementation"] = experts_implementation
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)


def count_parameters(config: PreTrainedConfig) -> int:
    """Return how many parameters a model of this config has; makes none of them."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def training_bytes(
    config: PreTrainedConfig, *, rows: int, tokens: int, trainable: int | None = None
) -> int:
    """Estimate the bytes that training takes on `rows` windows of `tokens` tokens.

    Weights in float32, and for those that learn (`trainable`, default all) a gradient and two
    moments. Activations are counted roughly: 34 values of a layer's width, the attention scores
    twice, the logits three times.
    """
    parameters = count_parameters(config)
    learn = parameters if trainable is None else trainable
    sizes: Any = config
    width, heads = sizes.hidden_size, sizes.num_attention_heads
    layer = 34 * width + 2 * heads * tokens
    activations = sizes.num_hidden_layers * layer + 3 * sizes.vocab_size
    return 4 * parameters + 12 * learn + 4 * rows * tokens * activations
