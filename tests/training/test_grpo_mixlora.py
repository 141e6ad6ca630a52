"""A mixture of LoRA experts trained with GRPO: the same lifecycle, the same exactness."""

from __future__ import annotations

import json

import pytest
import run_lab
import torch

from gptoss_tools.core.history import read_metrics
from gptoss_tools.errors import ConfigError
from gptoss_tools.models.loading import load_model, load_with_adapter
from gptoss_tools.models.mixlora import is_mixlora

MIXLORA = {"adapter": "mixlora", "lora_r": 2, "num_experts": 3, "max_steps": 4, "save_steps": 2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A model and a table, and one uninterrupted run of four steps with a MixLoRA."""
    folder = run_lab.furnish(tmp_path_factory.mktemp("mixlora"))
    run_lab.run(folder, "whole", **MIXLORA)
    return folder


def test_the_settings_of_a_mixlora_have_the_published_defaults(tmp_path):
    given = run_lab.TrainSettings(adapter="mixlora", lora_r=2)
    assert (given.lora_r, given.lora_alpha, given.lora_dropout) == (2, 16, 0.05)
    assert (given.num_experts, given.experts_per_token, given.router_aux_loss_coef) == (4, 2, 0.001)
    plain = run_lab.TrainSettings()
    assert (plain.lora_r, plain.lora_alpha, plain.lora_dropout) == (4, 8, 0.0)


def test_experts_and_routers_learn_and_the_balance_loss_is_logged_apart(lab):
    adapter = lab / "whole" / "adapter"
    assert is_mixlora(adapter)
    described = json.loads((adapter / "adapter_config.json").read_text())
    assert described["peft_type"] == "MIXLORA" and described["num_experts"] == 3
    assert described["base_model_name_or_path"] == str(lab / "model")
    tensors = run_lab.weights(adapter)
    raised = [name for name in tensors if "experts" in name and "lora_B" in name]
    assert raised and all(tensors[name].abs().sum() > 0 for name in raised)
    records = read_metrics(lab / "whole" / "metrics.jsonl")
    # 0.001 times the sum over picks of share times probability: k = 2 in perfect balance
    assert all(0.0015 < r["balance_loss"] < 0.006 for r in records)


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(lab):
    run_lab.run(lab, "broken", **MIXLORA)
    point = lab / "broken" / "checkpoints" / "step-000002"
    run_lab.resume(run_lab.ResumeSettings(run=str(point)))
    assert run_lab.same_bits(lab / "whole" / "adapter", lab / "broken" / "adapter")


def test_what_was_trained_answers_like_the_trainer_left_it(lab):
    ids = torch.tensor([[3, 5, 7, 9]])
    base = load_model(lab / "model", device="cpu")
    trained = load_with_adapter(None, lab / "whole" / "adapter", device="cpu").eval()
    with torch.no_grad():
        plain, moved = base(ids).logits, trained(ids).logits
        with trained.mixlora.disabled():
            assert torch.equal(trained(ids).logits, plain)
    assert not torch.equal(plain, moved)


def test_a_kl_term_is_refused_because_trl_would_load_another_model():
    with pytest.raises(ValueError, match="beta must be 0 with a MixLoRA"):
        run_lab.TrainSettings(adapter="mixlora", beta=0.1)


def test_modules_to_adapt_are_refused_because_a_mixlora_adapts_all():
    with pytest.raises(ValueError, match="no meaning for a MixLoRA"):
        run_lab.TrainSettings(adapter="mixlora", lora_target_modules=["q_proj"])


def test_another_number_of_experts_cannot_go_on(lab):
    with pytest.raises(ConfigError, match="num_experts was 3"):
        again = run_lab.settings(lab, "whole", resume=str(lab / "whole"), num_experts=4)
        run_lab.train(again, explicit={"num_experts", "max_steps"})
