"""What several export tests compare with: all tensors of a folder, PEFT's merge, edited files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gptoss_tools.models.loading import load_model

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


def peft_merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """PEFT's own merge in float32, rounded to bfloat16 once."""
    model = PeftModel.from_pretrained(load_model(base, dtype="float32"), str(adapter))
    state = model.merge_and_unload().state_dict()
    return {k: v.to(torch.bfloat16) for k, v in state.items()}


def edit_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
