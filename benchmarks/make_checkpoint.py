"""Write a synthetic gpt-oss checkpoint in the published layout, and a LoRA adapter for it.

    python benchmarks/make_checkpoint.py --size 20b --out DIR [--adapter DIR] [--layers N]

With `--size 20b` the tensor table is that of openai/gpt-oss-20b: 459 tensors in three shards,
13,761,264,768 bytes, in the order of the script that converted the published weights, so that
layers 18 and 6 span shards. Values are random: bfloat16 weights N(0, 0.02), any MXFP4 code, scales
from 2^-7 to 2^-3. Each tensor has a generator of its own, so its bytes depend on seed and name
alone. Written as a stream, in little memory.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from synthetic_adapter import write_adapter
from synthetic_tokenizer import write_tokenizer

SHARD_SHARE = 4.8e9 / 13_761_264_768  # the published shards were cut at 4.8 GB
PIECE = 1 << 25


@dataclass(frozen=True)
class Tensor:
    """One row of the table; `kind` is BF16 or U8."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (2 if self.kind == "BF16" else 1)


def config_of(size: str, layers: int | None = None):
    """Return the GptOssConfig of a size; `layers` changes its depth alone."""
    from transformers import GptOssConfig

    from gptoss_tools.models.machine import published_config

    config = published_config("openai/gpt-oss-20b") if size == "20b" else None
    if config is None:
        config = GptOssConfig(
            hidden_size=64,
            intermediate_size=64,
            head_dim=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=4,
            num_local_experts=4,
            num_experts_per_tok=2,
        )
    layers = layers or config.num_hidden_layers
    config.num_hidden_layers = layers
    config.layer_types = ["full_attention" if n % 2 else "sliding_attention" for n in range(layers)]
    return config


def tensor_table(config) -> list[Tensor]:
    """List every tensor in the order in which the published checkpoint fills its shards."""
    hidden, wide = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    experts = config.num_local_experts
    layer = [
        ("input_layernorm.weight", hidden),
        ("self_attn.o_proj.bias", hidden),
        ("self_attn.o_proj.weight", hidden, queries),
        ("self_attn.q_proj.bias", queries),
        ("self_attn.k_proj.bias", keys),
        ("self_attn.v_proj.bias", keys),
        ("self_attn.q_proj.weight", queries, hidden),
        ("self_attn.k_proj.weight", keys, hidden),
        ("self_attn.v_proj.weight", keys, hidden),
        ("self_attn.sinks", config.num_attention_heads),
        ("mlp.router.bias", experts),
        ("mlp.router.weight", experts, hidden),
        ("mlp.experts.gate_up_proj_bias", experts, 2 * wide),
        ("mlp.experts.gate_up_proj_blocks", experts, 2 * wide, hidden // 32, 16),
        ("mlp.experts.gate_up_proj_scales", experts, 2 * wide, hidden // 32),
        ("mlp.experts.down_proj_bias", experts, hidden),
        ("mlp.experts.down_proj_blocks", experts, hidden, wide // 32, 16),
        ("mlp.experts.down_proj_scales", experts, hidden, wide // 32),
        ("post_attention_layernorm.weight", hidden),
    ]
    names = sorted(str(n) for n in range(config.num_hidden_layers))
    rows = [(f"model.layers.{n}.{name}", shape) for n in names for name, *shape in layer]
    rows += [
        ("model.embed_tokens.weight", [config.vocab_size, hidden]),
        ("model.norm.weight", [hidden]),
        ("lm_head.weight", [config.vocab_size, hidden]),
    ]
    packed = ("_blocks", "_scales")
    return [Tensor(n, "U8" if n.endswith(packed) else "BF16", tuple(s)) for n, s in rows]


def cut(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Fill shards one after the other, as the published ones were."""
    limit = SHARD_SHARE * sum(tensor.nbytes for tensor in tensors)
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def write_checkpoint(folder: Path, size: str, layers: int | None = None, seed: int = 0) -> Path:
    """Write the checkpoint into `folder`, new or empty, and return it."""
    from gptoss_tools.models import layout

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty")
    config = config_of(size, layers)
    tokenizer = write_tokenizer(folder, full=size == "20b")
    eos = layout.token_id(tokenizer, "<|return|>")
    config.pad_token_id = layout.token_id(tokenizer, "<|endoftext|>")
    if size != "20b":
        config.vocab_size = len(tokenizer)
    shards = cut(tensor_table(config))
    weight_map = {}
    for number, tensors in enumerate(shards):
        name = layout.shard_name(number, len(shards))
        weight_map |= {tensor.name: name for tensor in tensors}
        write_shard(folder / name, tensors, seed)
    total = sum(tensor.nbytes for tensors in shards for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    records = {
        layout.INDEX: index,
        "config.json": layout.published_config(config, eos),
        "generation_config.json": layout.generation_config(tokenizer),
    }
    for name, record in records.items():
        (folder / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def write_shard(path: Path, tensors: list[Tensor], seed: int) -> None:
    """Write one safetensors file as its library does: wider types first, then by name."""
    tensors = sorted(tensors, key=lambda tensor: (tensor.kind, tensor.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for t in tensors:
        ends = [at, at := at + t.nbytes]
        header[t.name] = {"dtype": t.kind, "shape": t.shape, "data_offsets": ends}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as writer:
        file.write(len(text).to_bytes(8, "little") + text)
        pending = None
        for tensor in tensors:
            for piece in values(tensor, seed):  # made while the piece before it is written
                if pending is not None:
                    pending.result()
                pending = writer.submit(write_all, file, piece.data)


def write_all(file, piece: memoryview) -> None:
    """Write a whole piece: a raw file may take less than it is given."""
    piece = piece.cast("B")
    while piece:
        piece = piece[file.write(piece) :]


def values(tensor: Tensor, seed: int) -> Iterator[np.ndarray]:
    """Yield a tensor's bytes in pieces."""
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(tensor.name.encode())]))
    left = tensor.nbytes
    while left:
        size = min(left, PIECE)
        left -= size
        raw = rng.integers(0, 1 << 64, -(-size // 8), dtype=np.uint64).view(np.uint8)[:size]
        if tensor.name.endswith("_scales"):
            raw = raw % 5 + np.uint8(120)  # 2 ** (120 - 127) to 2 ** (124 - 127)
        elif tensor.kind == "BF16":
            mean = float(tensor.name.endswith("norm.weight"))
            raw = normal_table(mean)[raw.view(np.uint16)]
        yield raw


_TABLES: dict[float, np.ndarray] = {}


def normal_table(mean: float, spread: float = 0.02) -> np.ndarray:
    """65536 quantiles of a normal distribution as bfloat16 bits: one lookup draws a value."""
    if mean not in _TABLES:
        normal = statistics.NormalDist(mean, spread)
        quantiles = np.array([normal.inv_cdf((n + 0.5) / 65536) for n in range(65536)], np.float32)
        bits = quantiles.view(np.uint32)
        _TABLES[mean] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return _TABLES[mean]


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("20b", "tiny"), default="tiny")
    parser.add_argument("--layers", type=int, help="fewer layers of the same sizes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="also write a LoRA adapter, here")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_checkpoint(options.out, options.size, options.layers, options.seed)
    if options.adapter:
        write_adapter(options.adapter, options.out, options.seed)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"wrote {options.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
