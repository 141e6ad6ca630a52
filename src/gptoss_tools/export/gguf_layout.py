"""Which tensors a gpt-oss GGUF holds, and from which checkpoint tensor each of them comes.

Names and types are those of llama.cpp's own converter: MXFP4 experts, matrices in their stored
type, everything with one axis, the router and all biases in float32. Shapes have the outermost axis
first, as in a checkpoint; GGUF writes them the other way round. How values get there is
`gguf_tensors`' affair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from gptoss_tools.core.mxfp4 import BLOCK
from gptoss_tools.errors import DataError

ARCHITECTURE = "gpt-oss"
Role = Literal["matrix", "float32", "mxfp4"]

_SWIGLU_LIMIT = 7.0  # fixed in llama.cpp, like the order of the two kinds of attention
_ALL, _GATE, _UP = (0, 1), (0, 2), (1, 2)


class GgufTensor(NamedTuple):
    """One tensor; `part` is (first, step) of the source's rows, which fuse gate and up.

    `source` names a checkpoint tensor, for MXFP4 the parameter that blocks and scales belong to.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    role: Role
    part: tuple[int, int] = _ALL

    def nbytes(self, kind: GGMLQuantizationType) -> int:
        """Bytes in the file."""
        values, size = GGML_QUANT_SIZES[kind]
        return math.prod(self.shape) // values * size

    def source_shape(self) -> tuple[int, ...]:
        """What the checkpoint holds; for MXFP4 the shape of the scales."""
        axis = 0 if len(self.shape) == 1 else 1
        shape = [n * self.part[1] if i == axis else n for i, n in enumerate(self.shape)]
        return (*shape[:-1], shape[-1] // BLOCK) if self.role == "mxfp4" else tuple(shape)


@dataclass(frozen=True)
class Dimensions:
    """The numbers that decide every shape."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head: int
    experts: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Dimensions:
        """Read config.json, in the published words or those of transformers 5.

        Raises DataError where it is no gpt-oss, lacks a number, or differs from what llama.cpp
        takes for granted.
        """
        _check_fixed(config)
        return cls(
            layers=_number(config, "num_hidden_layers"),
            hidden=_number(config, "hidden_size"),
            feed_forward=_number(config, "intermediate_size"),
            heads=_number(config, "num_attention_heads"),
            key_value_heads=_number(config, "num_key_value_heads"),
            head=_number(config, "head_dim"),
            experts=_number(config, "num_local_experts"),
            vocabulary=_number(config, "vocab_size"),
        )

    def table(self) -> list[GgufTensor]:
        """Every tensor, in the order in which it is written."""
        outer = (self.vocabulary, self.hidden)
        found = [GgufTensor("token_embd.weight", "model.embed_tokens.weight", outer, "matrix")]
        for layer in range(self.layers):
            found += self._layer(f"blk.{layer}", f"model.layers.{layer}")
        norm = GgufTensor("output_norm.weight", "model.norm.weight", (self.hidden,), "float32")
        return [*found, norm, GgufTensor("output.weight", "lm_head.weight", outer, "matrix")]

    def _layer(self, to: str, source: str) -> list[GgufTensor]:
        wide, narrow = self.heads * self.head, self.key_value_heads * self.head
        projections = [
            ("attn_q", "q_proj", (wide, self.hidden)),
            ("attn_k", "k_proj", (narrow, self.hidden)),
            ("attn_v", "v_proj", (narrow, self.hidden)),
            ("attn_output", "o_proj", (self.hidden, wide)),
        ]
        found = [_float(f"{to}.attn_norm.weight", f"{source}.input_layernorm.weight", self.hidden)]
        for name, module, shape in projections:
            module = f"{source}.self_attn.{module}"
            found.append(GgufTensor(f"{to}.{name}.weight", f"{module}.weight", shape, "matrix"))
            found.append(_float(f"{to}.{name}.bias", f"{module}.bias", shape[0]))
        norm, router = "post_attention_norm", f"{source}.mlp.router"
        found += [
            _float(f"{to}.attn_sinks.weight", f"{source}.self_attn.sinks", self.heads),
            _float(f"{to}.{norm}.weight", f"{source}.post_attention_layernorm.weight", self.hidden),
            _float(f"{to}.ffn_gate_inp.weight", f"{router}.weight", self.experts, self.hidden),
            _float(f"{to}.ffn_gate_inp.bias", f"{router}.bias", self.experts),
        ]
        inner, outer = (self.feed_forward, self.hidden), (self.hidden, self.feed_forward)
        for name, module, shape, part in (
            ("gate", "gate_up_proj", inner, _GATE),
            ("up", "gate_up_proj", inner, _UP),
            ("down", "down_proj", outer, _ALL),
        ):
            to_expert, module = f"{to}.ffn_{name}_exps", f"{source}.mlp.experts.{module}"
            shape = (self.experts, *shape)
            found += [
                GgufTensor(f"{to_expert}.weight", module, shape, "mxfp4", part),
                GgufTensor(f"{to_expert}.bias", f"{module}_bias", shape[:2], "float32", part),
            ]
        return found


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises DataError where it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} is not a JSON object")
    return config


def _float(name: str, source: str, *shape: int) -> GgufTensor:
    return GgufTensor(name, source, shape, "float32")


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise DataError(f"config.json holds no usable {key}: {value!r}")
    return value


def _check_fixed(config: Mapping[str, Any]) -> None:
    if config.get("model_type") != "gpt_oss":
        raise DataError(f"config.json says {config.get('model_type')!r}, which is no gpt-oss")
    kinds = config.get("layer_types") or []
    expected = ["sliding_attention", "full_attention"]
    if any(kind != expected[place % 2] for place, kind in enumerate(kinds)):
        raise DataError(
            "llama.cpp expects sliding and full attention in turn, and config.json has "
            f"{', '.join(map(str, kinds))}"
        )
    if float(config.get("swiglu_limit", _SWIGLU_LIMIT)) != _SWIGLU_LIMIT:
        raise DataError(f"llama.cpp computes with swiglu_limit 7, not {config['swiglu_limit']}")
    if config.get("tie_word_embeddings"):
        raise DataError("llama.cpp expects gpt-oss with an output matrix of its own")
