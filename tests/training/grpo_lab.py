"""What the GRPO tests share: a random gpt-oss of two layers, a byte tokenizer, a small table.

Its answers are noise, so the reward here is a hash of the answer: any number, or none at all.
"""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.registry import register
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training.grpo import DecisionReward, DecisionTrainer, build_dataset, make_config

SPECIALS = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
]
PROMPT_END = "<|end|><|start|>assistant"
ALWAYS_MASKED_ROW = 2

torch.set_num_threads(1)  # sums in one order, whatever the machine


@register("reward", "lab_hash")
def hash_reward(decision, rewards_K, completion, row):
    """About a quarter of the completions, and all of one row, have no reward."""
    if row["row"] == ALWAYS_MASKED_ROW:
        return None
    number = zlib.crc32(repr(completion.messages).encode())
    return None if (number >> 8) % 4 == 0 else number % 101 / 100


@register("reward", "lab_unmasked")
def unmasked_reward(decision, rewards_K, completion, row):
    """The same without the holes."""
    return zlib.crc32(repr(completion.messages).encode()) % 101 / 100


_calls = itertools.count()


@register("reward", "lab_third")
def masking_every_third(decision, rewards_K, completion, row):
    """No reward on every third call, else one of 101 values: sure to mask some and not all."""
    call = next(_calls)
    return None if call % 3 == 0 else call * 37 % 101 / 100


@register("reward", "lab_nothing")
def no_reward(decision, rewards_K, completion, row):
    """Masks everything."""
    return None


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )


def tiny_model(seed: int = 0, lora: bool = True, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=288,
            hidden_size=32,
            intermediate_size=32,
            head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_hidden_layers=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=16,
            router_aux_loss_coef=0.9,
            initializer_range=0.3,
            dtype="float32",
        )
    )
    model.name_or_path = "lab"
    if not lora:
        return model
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=dropout, target_modules=modules)
    model = get_peft_model(model, config)
    with torch.no_grad():  # B starts at zero, and A would then have no gradient to compare
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def table(rows: int = 5, actions: int = 3) -> DecisionTable:
    """Prompts of different lengths, so that batches are padded."""
    values = np.random.default_rng(0).normal(size=(rows, actions))
    return DecisionTable(
        prompts=[f"<|start|>user<|message|>{'ab' * (i + 1)}{PROMPT_END}" for i in range(rows)],
        q=values,
        rewards=np.exp(values),
        n_actions=np.full(rows, actions),
        columns=pd.DataFrame(index=range(rows)),
        sha256="",
        _starts=[0],
        _paths=["table.csv"],
    )


def settings(**changes) -> TrainSettings:
    values = {
        "num_generations": 4,
        "gradient_accumulation_steps": 1,
        "invalid_reward": "mask",  # its answers are noise, and a missing reward means masked
        "max_completion_length": 5,
        "max_steps": 6,
        "save_steps": 1,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lora_r": 2,
        "reward": "lab_hash",
        "gradient_checkpointing": False,
        "device": "cpu",
    }
    return TrainSettings(**{**values, **changes})


def trainer(
    output: Path | str,
    *,
    rows: int = 5,
    n_actions: int = 3,
    dropout: float = 0.0,
    lora: bool = True,
    world: int = 1,
    **changes,
) -> DecisionTrainer:
    """A new trainer on a new model with the same random weights each time."""
    names = (
        "on_completions",
        "allow_changes",
        "share_prompts",
        "tokens_per_forward",
        "action_gradient",
        "stop_at_action",
    )
    extra = {n: changes.pop(n) for n in names if n in changes}
    wanted = settings(**changes)
    tokenizer = byte_tokenizer()
    data, _ = build_dataset(table(rows, n_actions), tokenizer, wanted)
    return DecisionTrainer(
        model=tiny_model(lora=lora, dropout=dropout),
        args=make_config(wanted, str(output), world, rows=len(data)),
        train_dataset=data,
        tokenizer=tokenizer,
        reward=DecisionReward.from_settings(wanted, tokenizer),
        **extra,
    )


def weights(run: DecisionTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
