"""Writing a gpt-oss model the way the published checkpoint is laid out.

MXFP4 experts, bf16 for the rest, shards numbered from 0, and a config.json in the published file's
own words: transformers 5 re-saves `rope_theta` and `rope_scaling` as `rope_parameters`, which
Ollama's and older vLLM's readers do not know. Merging adapters is not here (export).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import GptOssConfig, PreTrainedTokenizerBase

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import DataError, RunFolderError

INDEX = "model.safetensors.index.json"
_PLAIN_KEYS = [
    "attention_bias",
    "attention_dropout",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "output_router_logits",
    "pad_token_id",
    "rms_norm_eps",
    "router_aux_loss_coef",
    "sliding_window",
    "swiglu_limit",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
]


def shard_name(number: int, shards: int) -> str:
    """The published numbering: from 0, and the total named is the last number."""
    return f"model-{number:05d}-of-{shards - 1:05d}.safetensors"


def published_config(config: GptOssConfig, eos_token_id: int) -> dict[str, Any]:
    """config.json in the published file's vocabulary, keys sorted, quantization_config included."""
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    theta = rope.pop("rope_theta")
    record = {key: getattr(config, key) for key in _PLAIN_KEYS}
    record |= {
        "architectures": ["GptOssForCausalLM"],
        "eos_token_id": eos_token_id,
        "experts_per_token": config.num_experts_per_tok,
        "initial_context_length": rope["original_max_position_embeddings"],
        "model_type": "gpt_oss",
        "quantization_config": mxfp4.QUANTIZATION_CONFIG,
        "rope_scaling": rope,
        "rope_theta": theta,
        "transformers_version": "4.55.0.dev0",
    }
    return dict(sorted(record.items()))


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token; DataError if the tokenizer does not know it."""
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int):
        raise DataError(f"the tokenizer has no token {token}")
    return found


def generation_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """generation_config.json: three ends of a turn, as published (return, endoftext, call)."""
    ends = ("<|return|>", "<|endoftext|>", "<|call|>")
    return {
        "bos_token_id": token_id(tokenizer, "<|startoftext|>"),
        "do_sample": True,
        "eos_token_id": [token_id(tokenizer, end) for end in ends],
        "pad_token_id": token_id(tokenizer, "<|endoftext|>"),
        "transformers_version": "4.55.0.dev0",
    }


def checkpoint_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Model state to checkpoint tensors, in name order: experts to blocks and scales, rest bf16.

    Raises DataError where a dimension is no multiple of 32.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        value = value.detach().cpu()
        if mxfp4.is_packed(name):
            if value.shape[-2] % mxfp4.BLOCK:
                raise DataError(f"{name} has {value.shape[-2]} inputs, no multiple of 32")
            tensors.update(zip(mxfp4.packed_names(name), mxfp4.pack_parameter(value), strict=True))
        else:
            tensors[name] = value.to(torch.bfloat16).contiguous()
    return dict(sorted(tensors.items()))


def write_checkpoint(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    config: GptOssConfig,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    shards: int = 3,
) -> Path:
    """Write a checkpoint into `folder`, new or empty: shards, index, configs, tokenizer, template.

    `model` is a GptOssForCausalLM or its state dict (experts [E, in, out], any float dtype).
    Shards are filled in name order, so layers may span them. Every file is flushed to the disk; the
    caller renames the folder when it must appear whole. Raises RunFolderError for a used folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty", hint="name a new folder")
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    tensors = checkpoint_tensors(state)
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map, done = {}, 0
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for name, tensor in tensors.items():
        number = min(shards - 1, math.floor(done * shards / total))
        parts[number][name] = tensor
        weight_map[name] = shard_name(number, shards)
        done += tensor.nbytes
    for number, part in enumerate(parts):
        write_bytes(folder / shard_name(number, shards), save(part, metadata={"format": "pt"}))
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    eos = token_id(tokenizer, "<|return|>")
    _write_json(folder / "config.json", published_config(config, eos))
    _write_json(folder / "generation_config.json", generation_config(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, record: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(record, indent=2) + "\n").encode())
