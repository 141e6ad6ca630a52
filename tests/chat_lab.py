"""Small chat models other than gpt-oss: tokenizers with templates of their own, and random weights.

The templates are written for these tests, in the manner of Llama 3 and Qwen 3.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LLAMA = (
    "{{- bos_token }}"
    "{%- if messages[0].role == 'system' %}"
    "{%- set told, rest = messages[0].content | trim, messages[1:] %}"
    "{%- else %}{%- set told, rest = '', messages %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}"
    "{{- strftime_now('%d %b %Y') + '\n\n' + told + '<|eot_id|>' }}"
    "{%- for m in rest %}"
    "{%- if m.role not in ['user', 'assistant'] %}{{ raise_exception('Unknown role') }}{%- endif %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{- m.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)
QWEN = (
    "{%- for m in messages %}"
    "{%- set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.last and m.reasoning_content %}"
    "{{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{%- endif %}"
    "{{- (said if m.role == 'assistant' else m.content) + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)
SPECIALS = {
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>"],
}
ENDS = {"llama": "<|eot_id|>", "qwen": "<|im_end|>"}
TEXTS = ["Answer with [k], the number of one action.", "hour 3, load 120 kW, price 0.2", "[0] [1]"]


def tokenizer(family: str = "qwen", template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from a few lines; `<think>` is a token of the Qwen alone."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens([*SPECIALS[family], ENDS[family]])
    if family == "qwen":
        core.add_tokens(["<think>", "</think>"])
    begin = SPECIALS[family][0]
    known = {"bos_token": begin} if family == "llama" else {"pad_token": begin}
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=ENDS[family], **known)
    fast.chat_template = template or {"llama": LLAMA, "qwen": QWEN}[family]
    return fast


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def model(family: str, vocabulary: int, seed: int = 0) -> torch.nn.Module:
    """Two layers with random weights."""
    sizes = {**SIZES, "vocab_size": vocabulary}
    torch.manual_seed(seed)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=True))


def furnish(folder: Path, family: str) -> Path:
    """Save a model with its tokenizer; what it would rather sample with stands beside it."""
    known = tokenizer(family)
    made = model(family, len(known))
    known.save_pretrained(folder)
    # A published Llama lists several ends, a Qwen asks for sampling and a penalty of its own.
    ends = known.convert_tokens_to_ids([SPECIALS[family][1 - (family == "qwen")], ENDS[family]])
    made.generation_config = GenerationConfig(
        eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.3
    )
    made.save_pretrained(folder)
    return folder
