"""Which parts of gpt-oss carry an adapter, and what is refused."""

import copy

import pytest
import torch
from peft import get_peft_model

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.lora import describe, lora_config


def adapted(random_model, **settings):
    return get_peft_model(copy.deepcopy(random_model), lora_config(**settings))


@pytest.mark.parametrize("target", ["all-linear", "attention", ["attention"]])
def test_all_linear_is_the_four_attention_projections(random_model, target):
    model = adapted(random_model, r=4, target_modules=target)
    names = {
        name.split(".lora_")[0].split(".")[-1]
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    # 2 layers, rank 4, in + out: q 64 + 128, k and v 64 + 64 each, o 128 + 64: 4 * 640 * 2
    assert describe(model).trainable == 5120
    assert describe(model).total == describe(random_model).total + 5120


def test_experts_get_rank_times_experts_rows(random_model):
    model = adapted(random_model, r=2, target_modules=["experts"])
    # 2 layers, 4 experts, rank 2 each: gate_up 64 + 128, down 64 + 64: 2 * 4 * 2 * 320
    assert describe(model).trainable == 5120
    both = adapted(random_model, r=2, target_modules=["all-linear", "experts"])
    assert describe(both).trainable == 5120 + 2560


def test_an_adapter_starts_as_the_base_model(random_model):
    ids = torch.arange(40)[None]
    model = adapted(random_model, target_modules=["all-linear", "experts"])
    torch.testing.assert_close(model(ids).logits, random_model(ids).logits, rtol=1e-5, atol=1e-4)


def test_the_scale_is_alpha_over_r():
    config = lora_config(r=4, alpha=8, dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"target_modules": ["experts"], "dropout": 0.1}, "lora_dropout"),
        ({"target_modules": ["router"]}, "router"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": []}, "empty"),
        ({"target_modules": ["q_prj"]}, "'q_prj', which gpt-oss does not have"),
    ],
)
def test_what_cannot_carry_an_adapter_is_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        lora_config(**settings)


def test_a_count_reads_as_a_sentence(random_model):
    text = str(describe(adapted(random_model, r=4)))
    assert text.startswith("5,120 of ") and text.endswith("%)")
