"""The keys of a GGUF that describe the model: sizes, attention, rope, experts, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import (
    GGML_QUANT_VERSION,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    size_label,
)

from gptoss_tools.errors import DataError
from gptoss_tools.export.gguf_layout import ARCHITECTURE, Dimensions

REQUIRED = [
    "general.architecture",
    *(
        f"{ARCHITECTURE}.{key}"
        for key in (
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "expert_feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "attention.layer_norm_rms_epsilon",
            "attention.sliding_window",
            "expert_count",
            "expert_used_count",
            "rope.freq_base",
        )
    ),
]
"""Without these, llama.cpp refuses the file or computes something else."""

_ROPE = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast"}
_ROPE |= {"beta_slow", "truncate"}  # llama.cpp always rounds the range that `truncate` is about


def add_metadata(writer: GGUFWriter, config: Mapping[str, Any], name: str) -> None:
    """Add what llama.cpp's converter adds for this config.json; tensors must be known already.

    Raises DataError for a rope that GGUF cannot describe.
    """
    size = Dimensions.from_config(config)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(size_label(*writer.get_total_parameter_count()))
    writer.add_block_count(size.layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(size.hidden)
    writer.add_feed_forward_length(size.feed_forward)
    writer.add_expert_feed_forward_length(size.feed_forward)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.key_value_heads)
    writer.add_key_length(size.head)
    writer.add_value_length(size.head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_count(size.experts)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    _add_rope(writer, config)
    writer.add_file_type(LlamaFileType.MOSTLY_MXFP4_MOE)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def add_sampling(writer: GGUFWriter, settings: Mapping[str, Any]) -> None:
    """Add how training drew its answers, which llama.cpp then takes as its own defaults."""
    writer.add_sampling_temp(float(settings["temperature"]))
    writer.add_sampling_top_p(float(settings["top_p"]))
    writer.add_sampling_top_k(int(settings["top_k"]))
    writer.add_sampling_min_p(0.0)
    writer.add_sampling_penalty_repeat(1.0)


def _add_rope(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta"))
    unknown = {key for key, value in rope.items() if value is not None} - _ROPE
    kind = rope.get("rope_type", "default")
    if unknown or kind not in ("default", "yarn") or rope["rope_theta"] is None:
        raise DataError(f"GGUF has no words for this rope: {rope}")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
