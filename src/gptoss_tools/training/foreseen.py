"""What a dry run can say of memory: from shapes, before anything loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptoss_tools.errors import GptossError
from gptoss_tools.models.experts import obstacle_of, refuse_packed, weigh_experts, whole_training
from gptoss_tools.models.loading import read_config
from gptoss_tools.models.machine import published_config, resolve_device, weight_type


def foresee(settings: Any, **planned: Any) -> dict[str, Any]:
    """Return how a training would hold the experts and the bytes that one process needs.

    Builds and fetches nothing: both are None where the model's shape is not known without the Hub.
    `planned` as for `weigh_experts`; raises ConfigError where experts that are to stay packed
    cannot.
    """
    unknown = {"experts": None, "memory_bytes": None}
    try:
        config: Any = published_config(settings.model)
        if config is None and Path(settings.model).is_dir():
            config = read_config(settings.model)
        device = resolve_device(settings.device)
        dtype = weight_type(settings.dtype, device)
    except (GptossError, json.JSONDecodeError):
        return unknown
    if config is None:
        return unknown
    obstacle = obstacle_of(settings, config, dtype, settings.model)
    refuse_packed(settings.experts, obstacle)
    choice = weigh_experts(
        settings.experts,
        config,
        device,
        dtype,
        obstacle=obstacle,
        for_training=True,
        lora_r=settings.lora_r,
        **planned,
    )
    whole = settings.adapter == "none"
    needed = whole_training(config, dtype) if whole else choice.bytes_needed
    return {"experts": choice.held, "memory_bytes": needed}
