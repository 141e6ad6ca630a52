"""Which tensors a gpt-oss checkpoint has, and their shapes, told from its config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import DataError


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether config.json declares MXFP4 experts."""
    quantization = config.get("quantization_config") or {}
    return quantization.get("quant_method") == mxfp4.QUANTIZATION_CONFIG["quant_method"]


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint with this config.json, in the published words, by name.

    Raises DataError where a size is missing.
    """
    try:
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        experts, width = int(config["num_local_experts"]), int(config["head_dim"])
        heads, keys = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        layers, words = int(config["num_hidden_layers"]), int(config["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"config.json does not say the model's sizes: {error}") from error
    linear = {
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (keys * width, hidden),
        "self_attn.v_proj": (keys * width, hidden),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.router": (experts, hidden),
    }
    layer: dict[str, tuple[int, ...]] = {"self_attn.sinks": (heads,)}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        layer[f"{norm}.weight"] = (hidden,)
    for name, shape in linear.items():
        layer[f"{name}.weight"] = shape
        if name == "mlp.router" or config.get("attention_bias", True):
            layer[f"{name}.bias"] = shape[:1]
    for name, (inputs, outputs) in zip(
        mxfp4.PACKED, ((hidden, 2 * inner), (inner, hidden)), strict=True
    ):
        parameter = f"mlp.experts.{name}"
        layer[f"{parameter}_bias"] = (experts, outputs)
        if is_packed(config):
            blocks, scales = mxfp4.packed_names(parameter)
            layer[scales] = (experts, outputs, inputs // mxfp4.BLOCK)
            layer[blocks] = (*layer[scales], mxfp4.BLOCK // 2)
        else:
            layer[parameter] = (experts, inputs, outputs)
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{number}.{name}": shape
        for number in range(layers)
        for name, shape in layer.items()
    }
    shapes |= {"model.norm.weight": (hidden,), "model.embed_tokens.weight": (words, hidden)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (words, hidden)
    return shapes
