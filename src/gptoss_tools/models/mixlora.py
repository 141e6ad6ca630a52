"""MixLoRA (arXiv 2404.15159): a mixture of LoRA experts on a frozen gpt-oss or dense model.

    handle = attach(model, MixLoraConfig(num_experts=4, top_k=2))
    loss = model(**batch, labels=labels).loss + handle.total_loss()
    save(model, folder)
    handle = load(other_model, folder)

The base is frozen and wholly in use; while the LoRA's B are zero the model is the base, bit for bit
in form `parallel`, to float rounding in form `shared`. It stays the object it was: `generate`,
caches and non-reentrant gradient checkpointing work as before. What is new is one child,
`model.mixlora`, whose keys are the published ones; the layers reach it through hooks.

In train mode dropout, jitter and the dual path's noise act in every forward, also under no_grad:
generate in eval mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

from gptoss_tools.errors import ConfigError
from gptoss_tools.models import mixlora_files as files
from gptoss_tools.models.mixlora_block import ParallelBlock, RoutedBlock
from gptoss_tools.models.mixlora_config import MixLoraConfig
from gptoss_tools.models.mixlora_dense import DenseBlock
from gptoss_tools.models.mixlora_files import is_mixlora
from gptoss_tools.models.mixlora_gptoss import GptOssBlock
from gptoss_tools.models.mixlora_layers import AttentionLora, Recorder
from gptoss_tools.models.mixlora_losses import shares_of, weighted_losses

__all__ = ["MixLora", "MixLoraConfig", "attach", "is_mixlora", "load", "save"]


class MixLora(nn.Module):
    """The new parameters of a model, and what can be asked of them; also `model.mixlora`."""

    def __init__(self, config: MixLoraConfig, recorder: Recorder, layers: list[nn.Module]):
        super().__init__()
        self.config = config
        self.recorder = recorder
        self.layers = nn.ModuleList(layers)

    def losses(self) -> dict[str, Tensor]:
        """The weighted auxiliary losses of the last training forward, with their graph.

        `balance`, and with the dual path `gate_balance` and `uncertainty`. Empty after a forward in
        eval mode or without gradients; a forward under `disabled` changes nothing.
        """
        last = self.recorder.last
        return weighted_losses(last, self.config) if last else {}

    def total_loss(self) -> Tensor:
        """The sum of `losses`, 0 if there are none: what training adds to its own loss."""
        device = next(self.parameters()).device
        return sum(self.losses().values(), torch.zeros((), device=device))

    @torch.no_grad()
    def routing(self) -> Tensor:
        """Share of picks per layer and expert in the last training forward; each row sums to 1."""
        last = self.recorder.last
        if last is None or not last.layers:
            return torch.zeros(0, self.config.num_experts)
        seen = last.layers.values()
        shares = torch.stack([shares_of(layer.routing, last.counted) for layer in seen])
        return shares / self.config.top_k

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the pure base model inside this block."""
        before, self.recorder.enabled = self.recorder.enabled, False
        try:
            yield
        finally:
            self.recorder.enabled = before


def attach(model: PreTrainedModel, config: MixLoraConfig) -> MixLora:
    """Freeze `model` and put new, trainable MixLoRA modules on it, in place.

    Numbers are drawn under torch's global generator. Raises ConfigError, with the model untouched,
    where it cannot be served.
    """
    handle = _build(model, config)
    _connect(model, handle)
    return handle


def save(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the model's MixLoRA into `folder` in the published format (see `mixlora_files`)."""
    handle = handle_of(model)
    config = handle.config
    if not config.base_model_name_or_path:
        config = replace(config, base_model_name_or_path=model.name_or_path)
    files.write(Path(folder), config, handle.state_dict(), _activation(model))


def load(model: PreTrainedModel, folder: str | Path, *, trainable: bool = False) -> MixLora:
    """Put the MixLoRA saved in `folder` on `model`; frozen unless `trainable`.

    Raises DataError naming file and tensor, with the model untouched, where they do not fit.
    """
    config = files.read_config(Path(folder), _activation(model))
    path, tensors = files.read_tensors(Path(folder))
    with torch.random.fork_rng(devices=[]):  # drawn and overwritten
        handle = _build(model, config)
    files.check_tensors(path, tensors, handle.state_dict())
    handle.load_state_dict(tensors)
    _connect(model, handle)
    return handle.requires_grad_(trainable)


def _activation(model: PreTrainedModel) -> str | None:
    """The name of the FFN's activation; gpt-oss's own gated one has none."""
    if model.config.model_type == "gpt_oss":
        return None
    names = (getattr(model.config, name, None) for name in ("hidden_activation", "hidden_act"))
    return next((name for name in names if name), None)


def handle_of(model: nn.Module) -> MixLora:
    """The MixLoRA a model carries; ConfigError if it carries none."""
    handle = getattr(model, "mixlora", None)
    if not isinstance(handle, MixLora):
        raise ConfigError(f"this {type(model).__name__} carries no MixLoRA", hint="attach one")
    return handle


def _build(model: PreTrainedModel, config: MixLoraConfig) -> MixLora:
    """The modules for this model, on its devices, not yet connected to it."""
    layers = _decoder_layers(model)
    recorder = Recorder()
    built = [_layer(layer, number, config, recorder) for number, layer in enumerate(layers)]
    return MixLora(config, recorder, built).train(model.training)


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(f"MixLoRA needs a transformers model, not a {type(model).__name__}")
    if hasattr(model, "mixlora"):
        raise ConfigError("this model carries a MixLoRA already", hint="load the base anew")
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ConfigError(
            f"MixLoRA cannot serve a {type(model).__name__}: it has no decoder layers"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("MixLoRA needs the whole model in memory: some of it is offloaded")
    return layers


def _layer(layer: Any, number: int, config: MixLoraConfig, recorder: Recorder) -> nn.Module:
    """One layer's new modules: `self_attn.{q,k,v,o}_proj` and `mlp`."""
    built = nn.Module()
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or mlp is None:
        raise ConfigError(f"MixLoRA cannot serve layer {number}, a {type(layer).__name__}")
    built.self_attn = nn.ModuleDict()
    for name in config.attention_targets:
        base = getattr(attention, name, None)
        if not isinstance(base, nn.Linear):
            raise ConfigError(f"layer {number} has no linear {name} that could carry LoRA")
        built.self_attn[name] = AttentionLora(base, config, recorder)
    built.mlp = _block(mlp, attention, number, config, recorder)
    return built.to(next(layer.parameters()).device)


def _block(
    mlp: nn.Module, attention: Any, number: int, config: MixLoraConfig, recorder: Recorder
) -> RoutedBlock:
    if config.form == "parallel":
        hidden = attention.config.hidden_size
        return ParallelBlock(config, hidden, number, recorder)
    if isinstance(mlp, GptOssMLP):
        return GptOssBlock(config, mlp, number, recorder)
    return DenseBlock(config, mlp, number, recorder)


def _connect(model: PreTrainedModel, handle: MixLora) -> None:
    """Freeze the base and lead its forwards through the handle's modules."""
    model.requires_grad_(False)
    decoder: Any = model.base_model
    for layer, built in zip(decoder.layers, list[Any](handle.layers), strict=True):
        for name, lora in built.self_attn.items():
            getattr(layer.self_attn, name).register_forward_hook(lora.add)
        layer.mlp.forward = partial(built.mlp, layer.mlp, layer.mlp.forward)
    decoder.register_forward_pre_hook(handle.recorder.begin, with_kwargs=True)
    decoder.register_forward_hook(handle.recorder.end, always_call=True)
    model.mixlora = handle
