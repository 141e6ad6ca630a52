"""A held model is lent as it was loaded, whatever its last borrower did to it."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from gptoss_tools.models.adapters import attach_adapter
from gptoss_tools.models.held import HeldModel
from gptoss_tools.models.loading import load_model
from gptoss_tools.models.lora import lora_config
from gptoss_tools.settings import AdapterSettings


@pytest.fixture
def lender(model_folder):
    """A lender that counts its loadings, and the folder of a random model."""
    loaded = []

    def load(name, **options):
        loaded.append(name)
        return load_model(name, **options)

    return HeldModel(load), model_folder, loaded


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, random_model):
    folder = tmp_path_factory.mktemp("held")
    random_model.save_pretrained(folder)
    return folder


def shape(model):
    """Everything about a model's modules that a borrower may have changed."""
    return {
        name: (type(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("target", ["all-linear", "experts"])
def test_lora_and_what_training_leaves_behind_are_taken_off(lender, target):
    held, folder, loaded = lender
    base = held(folder)
    before, plain, flags = shape(base), logits(base), [p.requires_grad for p in base.parameters()]
    ended = base.generation_config.eos_token_id
    trained = get_peft_model(base, lora_config(target_modules=target))
    trained.enable_input_require_grads()
    trained.gradient_checkpointing_enable()
    base.generation_config.eos_token_id, base.config.use_cache = [1, 2], False
    again = held(folder)
    assert again is base and len(loaded) == 1
    assert shape(base) == before and torch.equal(logits(base), plain)
    assert [p.requires_grad for p in base.parameters()] == flags
    assert base.generation_config.eos_token_id == ended and base.config.use_cache is True
    assert not base.is_gradient_checkpointing


def test_a_mixlora_is_taken_off_too(lender):
    held, folder, loaded = lender
    base = held(folder)
    plain = logits(base)
    settings = AdapterSettings(adapter="mixlora", num_experts=2, experts_per_token=1, lora_r=2)
    attach_adapter(base, settings)
    assert hasattr(base, "mixlora")
    assert held(folder) is base and not hasattr(base, "mixlora")
    assert torch.equal(logits(base), plain) and len(loaded) == 1


@pytest.mark.parametrize("fused", [True, False])
def test_weights_that_were_trained_are_loaded_anew(lender, fused):
    held, folder, loaded = lender
    base = held(folder)
    plain = logits(base)
    base.requires_grad_(True)
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.01, fused=fused)
    base(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    again = held(folder)
    assert len(loaded) == 2 and torch.equal(logits(again), plain)


def test_only_what_was_asked_for_is_lent(lender):
    held, folder, loaded = lender
    one = held(folder, dtype="float32")
    assert held(folder, dtype="float32", for_training=False) is one
    assert held(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert len(loaded) == 2
    assert held.held_bytes == sum(
        t.nbytes for t in [*held(folder, dtype="bfloat16").parameters(), *one.buffers()]
    )
    held.free()
    assert held.held_bytes == 0
