"""Adapters of every kind on a base model: put one on, ask its losses, save it, find it again.

`lora` is PEFT's, `mixlora` is `models.mixlora`'s, `none` trains the model itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from gptoss_tools.errors import ConfigError
from gptoss_tools.models import mixlora
from gptoss_tools.models.lora import lora_config
from gptoss_tools.models.mixlora_files import check_tensors, read_tensors
from gptoss_tools.settings import AdapterSettings


def attach_adapter(model: PreTrainedModel, settings: AdapterSettings) -> Any:
    """Return `model` with a new, trainable adapter as `settings.adapter` says; seed before.

    A PeftModel for `lora`, the same object otherwise. Raises ConfigError where the base model
    cannot carry it.
    """
    if settings.adapter == "none":
        return model.requires_grad_(True)
    if settings.adapter == "mixlora":
        mixlora.attach(model, mixlora_config(settings, model.name_or_path or ""))
        return model
    return get_peft_model(model, lora_for(model, settings))


def lora_for(model: PreTrainedModel, settings: AdapterSettings) -> LoraConfig:
    """Return PEFT's config for this model: gpt-oss has rules of its own, others go as PEFT goes."""
    wanted = settings.lora_target_modules
    if model.config.model_type == "gpt_oss":
        return lora_config(
            r=settings.lora_r,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            target_modules=wanted,
        )
    if "experts" in wanted:
        raise ConfigError(
            f"lora_target_modules holds `experts`, and a {model.config.model_type} has none",
            hint="all-linear",
        )
    names: Any = "all-linear" if wanted == ["all-linear"] else wanted
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=names,
        bias="none",
        task_type="CAUSAL_LM",
    )


def mixlora_config(settings: AdapterSettings, base: str) -> mixlora.MixLoraConfig:
    """Return what the settings say of a MixLoRA."""
    return mixlora.MixLoraConfig(
        num_experts=settings.num_experts,
        top_k=settings.experts_per_token,
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        router_aux_loss_coef=settings.router_aux_loss_coef,
        router_init_range=settings.router_init_range,
        jitter_noise=settings.jitter_noise,
        form=settings.mixlora_form,
        dual_path=settings.dual_path,
        base_model_name_or_path=base,
    )


def auxiliary_losses(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the adapter's own weighted losses of the last training forward; mostly none."""
    handle = getattr(model, "mixlora", None)
    return handle.losses() if handle is not None else {}


def without_adapter(model: Any) -> AbstractContextManager[Any]:
    """Let `model` answer as its base does, inside a `with` block."""
    return model.mixlora.disabled() if hasattr(model, "mixlora") else model.disable_adapter()


def is_adapter(model: Any) -> bool:
    """Whether what is trained is an adapter, not the model itself."""
    return isinstance(model, PeftModel) or hasattr(model, "mixlora")


def save_trained(model: Any, folder: Path, state_dict: Any = None) -> None:
    """Write what is trained into `folder`: the adapter's files, or the whole model's."""
    if hasattr(model, "mixlora"):
        folder.mkdir(parents=True, exist_ok=True)
        mixlora.save(model, folder)
    elif isinstance(model, PeftModel):
        # False: PEFT would otherwise ask the Hub whether the vocabulary changed.
        model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
    else:
        # False: gpt-oss would be written under the names of its packed layout, and not reload.
        model.save_pretrained(str(folder), state_dict=state_dict, save_original_format=False)


def restore_mixlora(model: PreTrainedModel, folder: str | Path) -> None:
    """Give the MixLoRA that `model` carries the weights saved in `folder`."""
    path, tensors = read_tensors(Path(folder))
    handle = mixlora.handle_of(model)
    check_tensors(path, tensors, handle.state_dict())
    handle.load_state_dict(tensors)
