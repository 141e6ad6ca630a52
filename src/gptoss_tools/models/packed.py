"""A gpt-oss whose frozen experts stay packed in MXFP4 while an adapter on its attention learns.

Experts are 91 % of the 20b: packed they take 10.2 GB instead of 38.2 GB in bfloat16, and the whole
model 13.8 GB instead of 41.8; training adds one layer's unpacked experts, 1.6 GB. How they compute:
`packed_experts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssForCausalLM

from gptoss_tools.errors import ConfigError, DataError, first_line
from gptoss_tools.models.experts import is_packed_file
from gptoss_tools.models.layout import INDEX
from gptoss_tools.models.loading import choose_attention, quiet, read_config
from gptoss_tools.models.machine import require_memory, resolve_device
from gptoss_tools.models.packed_experts import Kept, PackedExperts
from gptoss_tools.models.unpacking import check_dtype


def skeleton(
    config: GptOssConfig,
    dtype: torch.dtype,
    *,
    attn_implementation: str = "eager",
    chunk: int | None = None,
) -> GptOssForCausalLM:
    """A model with packed experts and no numbers, all on the meta device."""
    with torch.device("meta"), quiet():
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    kept = Kept()
    for layer in model.model.layers:
        layer.mlp.experts = PackedExperts(layer.mlp.experts, chunk, kept)
    return model


def load_packed(
    folder: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attn_implementation: str = "eager",
    chunk: int | None = None,
) -> GptOssForCausalLM:
    """Load an MXFP4 checkpoint in eval mode, experts as they are on disk, the rest in `dtype`.

    Tensors come one at a time, so no more than the model and one tensor is held. PEFT's adapters on
    the attention, gradient checkpointing and `generate` work as on any gpt-oss. Raises ConfigError
    for a dtype other than float32 and bfloat16 or a model without MXFP4 experts, MachineError for
    too little memory, DataError for a tensor that is missing or of another shape.
    """
    path, target = Path(folder), resolve_device(str(device))
    check_dtype(dtype)
    config = read_config(path)
    if not is_packed_file(config):
        raise ConfigError(f"model {path} holds no MXFP4 experts that could stay packed")
    # For transformers this is no quantised model: it can be trained, and saves as it is.
    del config.quantization_config
    attention = choose_attention(attn_implementation, target, for_training=True)
    require_memory(config, target, dtype, packed=True)
    model: Any = skeleton(config, dtype, attn_implementation=attention, chunk=chunk)
    _fill(model, path, target)
    with target:  # holds computed buffers only, which no checkpoint has
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.tie_weights()
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


def _fill(model: nn.Module, folder: Path, device: torch.device) -> None:
    """Give every parameter and stored buffer its tensor, copied, so that no file stays open."""
    stored = model.state_dict()
    slots = dict([*model.named_parameters(), *model.named_buffers()])
    missing = {name for name in slots if name in stored}
    for name, tensor in _tensors(folder):
        if name not in missing:
            continue
        slot = slots[name]
        if slot.shape != tensor.shape:
            raise DataError(f"{name} in {folder} is {tuple(tensor.shape)}, not {tuple(slot.shape)}")
        missing.remove(name)
        value = torch.empty_like(slot, device=device, requires_grad=False).copy_(tensor)
        parent, _, leaf = name.rpartition(".")
        if isinstance(slot, nn.Parameter):
            value = nn.Parameter(value, requires_grad=slot.requires_grad)
        setattr(model.get_submodule(parent), leaf, value)
    if missing:
        raise DataError(f"checkpoint {folder} lacks {min(missing)} ({len(missing)} tensors in all)")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the files that the checkpoint's index names."""
    index = folder / INDEX
    try:
        files = {"model.safetensors"}
        if index.is_file():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        for file_name in sorted(files):
            with safe_open(folder / file_name, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"checkpoint {folder} cannot be read: {first_line(error)}") from error
