"""Whether a gpt-oss's experts stay packed in MXFP4 or are dequantised, told before a weight loads.

Packed experts take a quarter of the memory and, on a CPU, more time; what is computed is the same.
They serve inference and the training of an adapter that leaves the experts' own numbers alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError
from gptoss_tools.models.machine import (
    GB,
    PUBLISHED,
    available_bytes,
    estimate_memory,
    require_memory,
    weight_type,
)
from gptoss_tools.settings import AdapterSettings

Held = Literal["packed", "dequantized"]
"""How experts are held, once that is decided."""
_PACKED = "the experts cannot stay packed in MXFP4"


@dataclass(frozen=True)
class Choice:
    """How experts are held, the bytes that takes, and a sentence where memory asked for packing."""

    held: Held
    bytes_needed: int
    note: str | None = None


def weigh_experts(
    wanted: str,
    config: GptOssConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    obstacle: str | None,
    for_training: bool,
    lora_r: int = 4,
    tokens: int = 5000,
    at_once: int | None = None,
    held_bytes: int = 0,
) -> Choice:
    """Return how experts are to be held; whether that fits is not asked.

    `auto` packs them where the dequantised model does not fit and packing at least doubles the room
    that its weights leave. `obstacle` says why they cannot be packed; `tokens` are those of one
    micro-step, `at_once` of one forward; `held_bytes` of the model are in memory already.
    """
    need = estimate_memory(
        config, lora_r=lora_r, tokens=tokens, at_once=at_once, weight_bytes=dtype.itemsize
    )
    weights, free = dtype.itemsize * need.parameters, available_bytes(device) + held_bytes
    whole = need.training if for_training else weights
    small = need.packed_training if for_training else need.packed_loaded
    if wanted == "packed":
        return Choice("packed", small)
    doubles = free - need.packed_loaded >= 2 * (free - weights)
    if wanted == "dequantized" or obstacle or whole <= free or not doubles:
        return Choice("dequantized", whole)
    note = (
        f"experts stay packed in MXFP4: dequantised, {'training' if for_training else 'loading'} "
        f"takes about {whole / GB:.1f} GB, and {device} has {free / GB:.1f} GB free"
    )
    return Choice("packed", small, note)


def choose_experts(
    wanted: str,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    obstacle: str | None,
    for_training: bool,
    held_bytes: int = 0,
    **planned: Any,
) -> Choice:
    """Return what `weigh_experts` says, if the least that it takes fits.

    Raises ConfigError where the obstacle hinders what is wanted, MachineError for lack of memory.
    """
    if wanted not in ("auto", *get_args(Held)):
        raise ConfigError(f"experts {wanted!r} is unknown", hint="auto, packed or dequantized")
    refuse_packed(wanted, obstacle)
    limits: Any = {"for_training": for_training, "held_bytes": held_bytes}
    choice = weigh_experts(wanted, config, device, dtype, obstacle=obstacle, **limits, **planned)
    if wanted == "dequantized" and not obstacle:
        limits["hint"] = "--experts packed takes less"
    require_memory(config, device, dtype, packed=choice.held == "packed", **limits)
    return choice


def pin_experts(
    settings: Any, config: Any, device: torch.device, **planned: Any
) -> tuple[Any, list[str]]:
    """Return training settings with `experts` decided, and what there is to say about it.

    What a run begins with it goes on with, wherever it goes on: its settings are the record.
    `planned` and the errors are those of `choose_experts`; another family's settings come back.
    """
    dtype = weight_type(settings.dtype, device)
    obstacle = obstacle_of(settings, config, dtype)
    if not isinstance(config, GptOssConfig):
        refuse_packed(settings.experts, obstacle)
        return settings, []
    choice = choose_experts(
        settings.experts,
        config,
        device,
        dtype,
        obstacle=obstacle,
        for_training=True,
        lora_r=settings.lora_r,
        **planned,
    )
    pinned = settings.model_copy(update={"experts": choice.held})
    return pinned, [choice.note] if choice.note else []


def whole_training(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of a model that learns as a whole, without what its activations take."""
    # Weights, gradients and AdamW's two moments, all of one type.
    return 4 * dtype.itemsize * estimate_memory(config).parameters


def refuse_packed(wanted: str, obstacle: str | None) -> None:
    """Raise ConfigError where experts are to stay packed and something hinders that."""
    if wanted == "packed" and obstacle:
        raise ConfigError(f"{_PACKED}: {obstacle}", hint="--experts dequantized")


def obstacle_of(settings: Any, config: Any, dtype: torch.dtype, name: str = "") -> str | None:
    """Say why experts cannot stay packed in this training; None where they can.

    `name` is for a published model whose config is told from its name.
    """
    adapter: AdapterSettings = settings
    if adapter.adapter == "none":
        return "the whole model learns"
    if adapter.adapter == "mixlora" and adapter.mixlora_form == "shared":
        return "a MixLoRA of form `shared` works on their numbers"
    if adapter.adapter == "lora" and "experts" in adapter.lora_target_modules:
        return "lora_target_modules holds `experts`, and PEFT works on their numbers"
    return None if name in PUBLISHED else why_not_packed(config, dtype, experts_code(settings))


def experts_code(settings: Any) -> str:
    """The setting experts_implementation, `auto` for a command without it."""
    return getattr(settings, "experts_implementation", "auto")


def why_not_packed(
    config: Any, dtype: torch.dtype, experts_implementation: str = "auto"
) -> str | None:
    """Say why the experts of a model cannot stay packed; None where they can."""
    if not is_packed_file(config):
        return "the model holds none"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"they cannot compute in {str(dtype).removeprefix('torch.')}"
    if experts_implementation not in ("auto", "grouped_mm"):
        return f"experts_implementation {experts_implementation} computes with dequantised ones"
    return None


def is_packed_file(config: Any) -> bool:
    """Whether the checkpoint of this config holds MXFP4 experts."""
    stored = getattr(config, "quantization_config", None)
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    return method == mxfp4.QUANTIZATION_CONFIG["quant_method"]


def experts_under(adapter: str | Path, wanted: str) -> str:
    """Return how the experts under this saved adapter may be held: `wanted`, or for `auto` less.

    Raises ConfigError where they are to stay packed and the adapter works on their numbers.
    """
    try:
        found = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        if found.get("peft_type") == "MIXLORA":
            touched = found.get("form", "shared") == "shared"
        else:
            touched = bool(found.get("target_parameters"))
    except (OSError, ValueError, AttributeError):  # whoever loads it says more
        return wanted
    if touched and wanted == "packed":
        raise ConfigError(
            f"{_PACKED}: the adapter {adapter} works on their numbers",
            hint="--experts dequantized",
        )
    return "dequantized" if touched else wanted


def held_as(model: Any) -> Held:
    """Return how a loaded model holds its experts; `dequantized` too where it has none."""
    kind: Any = GptOssExperts
    plain = any(isinstance(module, kind) for module in model.modules())
    return "packed" if model.config.model_type == "gpt_oss" and not plain else "dequantized"
