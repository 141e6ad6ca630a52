"""A MixLoRA on disk: `adapter_config.json` and `adapter_model.safetensors`, published names.

Keys (i layers, e experts, projections as in the base):

    mixlora.layers.{i}.self_attn.{q,k,v,o}_proj.lora_{A,B}.weight
    mixlora.layers.{i}.mlp.moe_gate.weight                                   [num_experts, hidden]
    mixlora.layers.{i}.mlp.{gate,up,down}_proj.experts.{e}.lora_{A,B}.weight    form `shared`
    mixlora.layers.{i}.mlp.block.experts.{e}.lora_{A,B}.weight                  form `parallel`
    mixlora.layers.{i}.mlp.augment_gating.{0,2}.{weight,bias}                   dual path
    mixlora.layers.{i}.mlp.augmentator.{alpha,beta}_scale                       dual path

`form` and the dual path's names are ours; upstream's `adapter_model.bin` is read as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptoss_tools.core.publish import temporary_name, write_json
from gptoss_tools.errors import ConfigError, DataError, first_line
from gptoss_tools.models.mixlora_config import MixLoraConfig

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
UPSTREAM_TENSORS = "adapter_model.bin"
PREFIX = "mixlora."
PEFT_TYPE = "MIXLORA"
STRATEGIES = ("mixlora", "mixtral")  # the second is upstream's name before 0.2
_DUAL = ("alpha_scale", "beta_scale", "alpha_bal", "beta_unc")
_REFUSED = {"use_dora": "DoRA", "use_rslora": "rank-stabilised LoRA"}


def is_mixlora(folder: str | Path) -> bool:
    """Whether this folder holds a MixLoRA, by its adapter_config.json alone."""
    try:
        published = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(published, dict) and published.get("peft_type") == PEFT_TYPE


def write(folder: Path, config: MixLoraConfig, tensors: Mapping[str, Tensor], act_fn: str | None):
    """Write both files, each whole or not at all; the config last, so that it vouches for both."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = temporary_name(folder / TENSORS)
    try:
        save_file(named, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / TENSORS)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(folder / CONFIG, published(config, act_fn))


def published(config: MixLoraConfig, act_fn: str | None) -> dict[str, Any]:
    """The config as upstream names it, with the router's keys, which upstream reads but omits."""
    lora = {"r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    return {
        "bias": "none",
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model_name_or_path,
        **lora,
        "target_modules": list(config.target_modules),
        "routing_strategy": STRATEGIES[0],
        "num_experts": config.num_experts,
        "top_k": config.top_k,
        "act_fn": act_fn,
        "expert_lora": lora,
        "router_loss": config.router_aux_loss_coef > 0,
        "router_aux_loss_coef": config.router_aux_loss_coef,
        "router_init_range": config.router_init_range,
        "jitter_noise": config.jitter_noise,
        "form": config.form,
        "dual_path": config.dual_path,
        **({name: getattr(config, name) for name in _DUAL} if config.dual_path else {}),
    }


def read_config(folder: Path, act_fn: str | None) -> MixLoraConfig:
    """The config of a saved MixLoRA, upstream's too; DataError for what this code cannot run.

    `act_fn` is the base's activation: upstream lets an adapter replace it, this code does not.
    """
    path = folder / CONFIG
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no adapter folder: {CONFIG} is missing") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(entry, dict) or entry.get("peft_type") != PEFT_TYPE:
        raise DataError(f"{path} describes no MixLoRA", hint="load other adapters with PEFT")
    for name, what in _REFUSED.items():
        if entry.get(name):
            raise DataError(f"{path} asks for {what}, which MixLoRA here does not do")
    if entry.get("routing_strategy") not in STRATEGIES:
        raise DataError(f"{path} names routing_strategy {entry.get('routing_strategy')!r}")
    if entry.get("act_fn") not in (None, act_fn):
        raise DataError(f"{path} asks for act_fn {entry['act_fn']!r}, and the base has {act_fn!r}")
    for name, value in (entry.get("expert_lora") or {}).items():
        if name in ("r", "lora_alpha", "lora_dropout") and value != entry.get(name):
            raise DataError(f"{path} gives the experts another {name} than attention")
    targets = entry.get("target_modules", ())
    if isinstance(targets, dict):  # upstream's older form
        entry["target_modules"] = [name for name, wanted in targets.items() if wanted]
    known = {f.name for f in fields(MixLoraConfig)}
    try:
        return MixLoraConfig(**{k: v for k, v in entry.items() if k in known and v is not None})
    except (ConfigError, TypeError) as error:
        raise DataError(f"{path}: {first_line(error)}") from error


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that holds the tensors, and the tensors without the `mixlora.` prefix."""
    path = folder / TENSORS
    try:
        if path.is_file():
            tensors = load_file(path)
        else:
            path = folder / UPSTREAM_TENSORS
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds neither {TENSORS} nor {path.name}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(tensors, dict):
        raise DataError(f"{path} holds no tensors by name")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not str(name).startswith(PREFIX):
            raise DataError(f"{path} holds {name}, which is no tensor of a MixLoRA")
    return path, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def check_tensors(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise DataError naming the first tensor that is missing, foreign, misshapen or not finite."""
    held, needed = _layers(tensors), _layers(wanted)
    if held != needed:
        raise DataError(
            f"{path} holds {held} layers and the model has {needed}",
            hint="was it trained on this base model?",
        )
    for name, tensor in wanted.items():
        if name not in tensors:
            raise DataError(f"{path} lacks {PREFIX}{name}")
        if tensors[name].shape != tensor.shape:
            raise DataError(
                f"{path}: {PREFIX}{name} is {list(tensors[name].shape)}, "
                f"and this model needs {list(tensor.shape)}",
                hint="was it trained on this base model?",
            )
        if not torch.isfinite(tensors[name]).all():
            raise DataError(f"{path}: {PREFIX}{name} holds NaN or infinite numbers")
    if foreign := sorted(set(tensors) - set(wanted)):
        raise DataError(f"{path} holds {PREFIX}{foreign[0]}, which its config does not call for")


def _layers(names: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in names})
