"""A LoRA adapter with random weights for a synthetic checkpoint, as PEFT saves one."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

RANK, ALPHA = 16, 32
CHANGE = 0.01  # |D| / |W|: large enough that rounding to bfloat16 keeps it


def write_adapter(folder: Path, base: Path, seed: int = 0) -> Path:
    """Write a PEFT adapter of rank 16 on q, k, v and o of every layer of `base`, B not zero."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    weights = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    hidden = config["hidden_size"]
    width = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    width = {name: heads * config["head_dim"] for name, heads in width.items()}
    shapes = {"q": (width["q"], hidden), "k": (width["k"], hidden), "v": (width["k"], hidden)}
    shapes["o"] = (hidden, width["q"])
    names = [(n, p) for n in range(config["num_hidden_layers"]) for p in "qkvo"]
    tensors = {}
    for layer, part in names:
        module = f"model.layers.{layer}.self_attn.{part}_proj"
        assert f"{module}.weight" in weights
        rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(module.encode())]))
        outputs, inputs = shapes[part]
        bound = inputs**-0.5  # PEFT's start of A
        # |D| / |W| = alpha / r * sqrt(r) * std(A) * std(B) / 0.02
        spread = CHANGE * 0.02 / (ALPHA / RANK * RANK**0.5 * bound / 3**0.5)
        a = rng.uniform(-bound, bound, (RANK, inputs)).astype(np.float32)
        b = (rng.standard_normal((outputs, RANK)) * spread).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    record = {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    text = json.dumps(record, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder
