"""How far an export's logits lie from base + adapter unmerged, on a few prompts.

Both models are loaded one after the other, in float32 on the CPU, so that only what the export
rounded lies between them. That takes a whole model in memory; `finish` spares large ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gptoss_tools.chat.families import chat_of
from gptoss_tools.errors import MachineError
from gptoss_tools.export.record import LogitGap
from gptoss_tools.models.adapters import without_adapter
from gptoss_tools.models.loading import load_model, load_tokenizer, load_with_adapter

_PROMPTS = (
    "Hour 09: load 40 kW, tank 120 of 300 kWh, carbon 0.31 kg/kWh. Actions: [0] [1] [2] [3].",
    "The price is 12 now and 9 in an hour; the stock lasts two hours. Buy now, or wait?",
    "Name the larger number: 17 or 71.",
)


def compare_logits(folder: Path, base_dir: Path, adapter_dir: Path) -> LogitGap:
    """Run the prompts through base, base + adapter and the export in `folder`."""
    options = {"dtype": "float32", "device": "cpu", "for_training": False}
    try:
        ids = _prompt_ids(folder)
        model: Any = load_with_adapter(base_dir, adapter_dir, **options)
        unmerged = _logits(model, ids)
        with without_adapter(model):
            before = _logits(model, ids)
        del model
        after = _logits(load_model(folder, **options), ids)
    except MachineError as error:
        return LogitGap(skipped=str(error))
    return LogitGap(
        rounding=float((after - unmerged).abs().max()),
        adapter=float((unmerged - before).abs().max()),
        positions=len(after),
    )


def run_prompts(folder: Path) -> tuple[str, str]:
    """Load the export in `folder` and run the prompts; return (what is wrong or "", what was seen).

    Raises MachineError without the memory, DataError where the checkpoint lacks a tensor.
    """
    ids = _prompt_ids(folder)
    logits = _logits(load_model(folder, for_training=False), ids)
    if not bool(torch.isfinite(logits).all()):
        return "a forward pass gives logits that are NaN or infinite", ""
    return "", f"finite logits at {len(logits)} positions of {len(ids)} prompts"


def _prompt_ids(folder: Path) -> list[torch.Tensor]:
    tokenizer = load_tokenizer(folder)
    chat = chat_of(tokenizer, date="2026-01-01")
    texts = [chat.prompt([{"role": "user", "content": text}]) for text in _PROMPTS]
    return [torch.tensor([tokenizer(text, add_special_tokens=False).input_ids]) for text in texts]


@torch.inference_mode()
def _logits(model: PreTrainedModel | torch.nn.Module, ids: list[torch.Tensor]) -> torch.Tensor:
    """Logits of all prompts, one after the other: [positions, vocabulary]."""
    device = next(model.parameters()).device
    return torch.cat([model(one.to(device)).logits[0] for one in ids])
