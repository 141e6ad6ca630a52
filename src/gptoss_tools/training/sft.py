"""train-sft as one of the ways to train: examples with answers, and the loss on held-out ones."""

from __future__ import annotations

from transformers import set_seed

from gptoss_tools.models.adapters import attach_adapter
from gptoss_tools.models.loading import load_model
from gptoss_tools.settings.sft import SftSettings
from gptoss_tools.training.method import Method
from gptoss_tools.training.sft_heldout import HeldOutLoss
from gptoss_tools.training.sft_preparation import PREFIX, SftPrepared, plan, prepare
from gptoss_tools.training.sft_trainer import SftTrainer, make_config
from gptoss_tools.training.sitting import Sitting


def build(sitting: Sitting) -> SftTrainer:
    """Load the base, put a new adapter on it and make its trainer."""
    settings, prepared = sitting.settings, sitting.prepared
    assert isinstance(prepared, SftPrepared)
    held_out = None
    if prepared.held_out is not None:
        held_out = HeldOutLoss(sitting.run, prepared.held_out, settings)
        sitting.callbacks.append(held_out)
    model = load_model(
        prepared.model,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        experts=settings.experts,
        experts_implementation=settings.experts_implementation,
        device=settings.device,
        cache_dir=sitting.cache_dir,
    )
    set_seed(settings.seed)  # the adapter's first weights are drawn here
    trainer = SftTrainer(
        model=attach_adapter(model, settings),
        args=make_config(settings, str(sitting.run.checkpoints_path), prepared.world_size),
        train_dataset=prepared.data.dataset,
        tokenizer=prepared.tokenizer,
        allow_changes=sitting.allow_changes,
        callbacks=sitting.callbacks,
    )
    if held_out is not None:
        held_out.trainer = trainer
    return trainer


METHOD = Method("train-sft", PREFIX, SftSettings, prepare, build, plan)
