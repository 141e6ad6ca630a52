"""Only weights that an adapter changes are sent to vLLM; the reading of TRL itself is real."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import grpo_lab as lab
import pytest
import torch
from trl.generation.vllm_generation import VLLMGeneration

from gptoss_tools.training.vllm_sync import adapted_weights, send_adapted_only


@pytest.fixture()
def model():
    return lab.tiny_model()


def generation(model, sleeping=False):
    """TRL's own walk over the parameters, without the engine behind it."""
    stand_in = SimpleNamespace(
        model=model,
        enable_sleep_mode=sleeping,
        _dist=SimpleNamespace(is_fsdp=False, gather_params=lambda params: contextlib.nullcontext()),
    )
    fix = VLLMGeneration._fix_param_name_to_vllm
    stand_in._fix_param_name_to_vllm = lambda *args, **more: fix(stand_in, *args, **more)
    stand_in._iter_named_params = lambda: VLLMGeneration._iter_named_params(stand_in)
    return stand_in


def sent(generation):
    return {name: value.clone() for name, value in generation._iter_named_params()}


def test_what_is_sent_is_all_that_differs_from_the_base(model):
    base = {name: value.clone() for name, value in lab.tiny_model(lora=False).named_parameters()}
    whole = sent(generation(model))
    assert whole.keys() == base.keys()
    changed = {name for name in whole if not torch.equal(whole[name], base[name])}
    few = generation(model)
    send_adapted_only(few, model)
    ours = sent(few)
    assert ours.keys() == changed == adapted_weights(model)
    assert len(ours) == 2 * 4  # q, k, v, o of two layers
    assert all(torch.equal(ours[name], whole[name]) for name in ours)


def test_the_adapter_is_taken_out_again(model):
    before = {name: value.clone() for name, value in model.named_parameters()}
    few = generation(model)
    send_adapted_only(few, model)
    sent(few)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name])
    assert not any(getattr(module, "merged", False) for module in model.modules())


def test_a_sleeping_engine_forgets_its_weights_and_gets_all(model):
    sleepy = generation(model, sleeping=True)
    send_adapted_only(sleepy, model)
    assert len(sent(sleepy)) > 2 * 4
