"""What a model needs and what this machine has, answered from config shapes before anything loads.

Estimates count weights exactly and activations roughly; they are lower bounds meant to refuse the
hopeless, not to promise that the last gigabyte suffices. Nothing here loads a weight.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import GptOssConfig

from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.models.scratch import count_parameters

GB = 1e9
# Layers and experts of the published checkpoints, so that their size can be told without the Hub;
# everything else in their config.json is GptOssConfig's default.
PUBLISHED = {
    "openai/gpt-oss-20b": (24, 32),
    "openai/gpt-oss-120b": (36, 128),
}
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
}
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one copy of a model takes."""

    parameters: int
    packed: int  # as in the MXFP4 checkpoint: experts 4.25 bits each, the rest bf16
    bfloat16: int  # everything dequantised
    float32: int
    training: int  # dequantised weights, adapter with Adam, activations with checkpointing
    packed_loaded: int  # experts packed, the rest in the type computed in
    packed_training: int  # the same, one layer's unpacked experts, adapter, activations


def published_config(name: str) -> GptOssConfig | None:
    """Shape of a published gpt-oss, told without the Hub; None for any other model."""
    if name not in PUBLISHED:
        return None
    layers, experts = PUBLISHED[name]
    return GptOssConfig(num_hidden_layers=layers, num_local_experts=experts)


def estimate_memory(
    config: Any,
    *,
    lora_r: int = 4,
    tokens: int = 5000,
    at_once: int | None = None,
    weight_bytes: int = 2,
) -> MemoryEstimate:
    """Bytes from shapes. `tokens` are those of one micro-step; `weight_bytes` is 2 or 4.

    `at_once` are the tokens of one forward where a micro-step makes several. Training adds 16 bytes
    per parameter of an attention adapter (float32 weight, gradient and two moments); per token what
    gradient checkpointing keeps (hidden states of every layer); and per token at once 0.25 MB per
    2880 hidden units, for the layer being recomputed. Eager attention's score matrix, heads *
    length^2, comes on top where the prompts are long. Models other than gpt-oss are counted as
    transformers makes them, without a tensor, with an adapter on every linear layer.
    """
    if not isinstance(config, GptOssConfig):
        return _other_family(config, lora_r, tokens, at_once, weight_bytes)
    hidden, layers, experts = (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_local_experts,
    )
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = experts * 3 * hidden * config.intermediate_size  # one layer's expert weights
    packed = layers * layer
    attention = 2 * hidden * queries + 2 * hidden * keys  # q, o; k, v
    attention += queries + 2 * keys + hidden + config.num_attention_heads  # biases, sinks
    other = experts * (hidden + 1) + 2 * hidden + experts * (2 * config.intermediate_size + hidden)
    plain = layers * (attention + other) + hidden + 2 * config.vocab_size * hidden
    adapter = layers * lora_r * (2 * (hidden + queries) + 2 * (hidden + keys))
    activations = _activations(hidden, layers, tokens, at_once, weight_bytes)
    parameters = packed + plain
    learning = 16 * adapter + activations
    packed_loaded = packed // 2 + packed // 32 + weight_bytes * plain
    return MemoryEstimate(
        parameters=parameters,
        packed=packed // 2 + packed // 32 + 2 * plain,
        bfloat16=2 * parameters,
        float32=4 * parameters,
        training=weight_bytes * parameters + learning,
        packed_loaded=packed_loaded,
        packed_training=packed_loaded + weight_bytes * layer + learning,
    )


def _activations(
    hidden: int, layers: int, tokens: int, at_once: int | None, weight_bytes: int
) -> int:
    return hidden * (2 * layers * tokens + 90 * (at_once or tokens)) * weight_bytes // 2


def _other_family(
    config: Any, lora_r: int, tokens: int, at_once: int | None, weight_bytes: int
) -> MemoryEstimate:
    sizes, parameters = config.get_text_config(), count_parameters(config)
    hidden, layers = sizes.hidden_size, sizes.num_hidden_layers
    inner = getattr(sizes, "intermediate_size", None) or 4 * hidden
    adapter = layers * lora_r * (4 * 2 * hidden + 3 * (hidden + inner))
    activations = _activations(hidden, layers, tokens, at_once, weight_bytes)
    loaded = weight_bytes * parameters
    training = loaded + 16 * adapter + activations
    return MemoryEstimate(
        parameters=parameters,
        packed=2 * parameters,
        bfloat16=2 * parameters,
        float32=4 * parameters,
        training=training,
        packed_loaded=loaded,  # there is nothing to pack
        packed_training=training,
    )


def eager_scores(config: GptOssConfig, *, rows: int, length: int, weight_bytes: int = 2) -> int:
    """Bytes of eager attention's score matrix in one layer: rows * heads * length^2.

    Twice, for the scores and their softmax. Gradient checkpointing keeps one layer's at a time.
    """
    return 2 * rows * config.num_attention_heads * length**2 * weight_bytes


def branch_scores(
    config: GptOssConfig,
    *,
    prompts: int,
    group: int,
    prompt: int,
    completion: int,
    weight_bytes: int = 2,
) -> int:
    """Bytes of the scores in one layer where groups share their prompts, and of their softmax.

    A prompt has the half of its square, a completion what it sees; `prompt` and `completion` are
    lengths. Flex attention keeps none of it.
    """
    of_group = prompt**2 // 2 + group * completion * (prompt + completion)
    return 2 * prompts * config.num_attention_heads * of_group * weight_bytes


def resolve_device(device: str = "auto") -> torch.device:
    """`auto` is this process's current GPU where there is one, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r} is none", hint="auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"device {device} is not there: {torch.cuda.device_count()} CUDA GPUs are visible",
            hint="use device auto or cpu",
        )
    return chosen


def weight_type(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU; ConfigError for an unknown name."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown", hint="use auto, " + ", ".join(DTYPES))
    return DTYPES[dtype]


def available_bytes(device: torch.device) -> int:
    """Free bytes on the GPU, or free RAM within this process's control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for name in _CGROUP_LIMITS:
        try:
            free = min(free, int(Path(name).read_text()))
        except (OSError, ValueError):  # no control group, or "max"
            continue
    return free


def require_memory(
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    packed: bool = False,
    for_training: bool = False,
    held_bytes: int = 0,
    hint: str = "use a larger GPU, or `--model tiny` to try the commands out",
) -> None:
    """Raise MachineError, in numbers, if the weights alone (or training) cannot fit on `device`.

    `packed`: the experts stay in MXFP4. `held_bytes` of the weights are there already.
    """
    width = dtype.itemsize
    need = estimate_memory(config, weight_bytes=width)
    what = f"{'training' if for_training else 'loading'} this model"
    if packed:
        what += " with packed experts"
        bytes_needed = need.packed_training if for_training else need.packed_loaded
    else:
        bytes_needed = need.training if for_training else width * need.parameters
    free = available_bytes(device) + held_bytes
    if bytes_needed > free:
        raise MachineError(
            f"{what} needs about {bytes_needed / GB:.1f} GB on {device}, which has "
            f"{free / GB:.1f} GB free",
            hint=hint,
        )


def packed_support(device: torch.device) -> str | None:
    """Why transformers' own kernels for packed experts do not run here, or None where they do."""
    if device.type != "cuda":
        return "it needs a CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (7, 5):
        return f"the GPU's compute capability is {major}.{minor}, and 7.5 is needed"
    for package in ("triton", "kernels"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    return None
