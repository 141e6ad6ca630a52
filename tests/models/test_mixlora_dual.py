"""The dual path: noise within each token, a gate that starts clean, and nothing of it in eval."""

import pytest
import torch
from mixlora_lab import MAKERS, NAIVE, block_of, ffn, llama, mixed, states, tokens

from gptoss_tools.models.mixlora import MixLoraConfig, attach
from gptoss_tools.models.mixlora_dual import NormalAugmenter, PathGate


def test_the_noise_of_a_token_comes_from_that_token_alone():
    augmenter = NormalAugmenter(alpha_scale=0.5, beta_scale=2.0)
    x = states(5)
    torch.manual_seed(2)
    noised = augmenter(x)
    changed = x.clone()
    changed[0, 3:] *= 100
    torch.manual_seed(2)
    assert torch.equal(augmenter(changed)[0, :3], noised[0, :3])
    assert augmenter(x[:, :1]).shape == (1, 1, 16)  # a single token is noised as any other


def test_the_noise_has_the_tokens_mean_and_deviation():
    x = torch.tensor([3.0, 7.0] * 50_000, dtype=torch.float64)  # mean 5, deviation 2
    torch.manual_seed(0)
    noised = NormalAugmenter(alpha_scale=0.5, beta_scale=1.0)(x)
    low, high = noised[::2], noised[1::2]
    # 5 + 2 * ((1 + 0.5 e1) * -1 + e2): mean 3, variance 4 * (0.25 + 1); likewise around 7
    assert low.mean().item() == pytest.approx(3, abs=0.05)
    assert high.mean().item() == pytest.approx(7, abs=0.05)
    assert low.var().item() == pytest.approx(5, rel=0.03)


def test_scales_of_zero_give_the_token_back():
    x = states()
    torch.testing.assert_close(NormalAugmenter(0.0, 0.0)(x), x)


def test_the_gate_starts_clean_and_nearly_constant():
    torch.manual_seed(0)
    share = PathGate(64)(torch.randn(500, 64))
    # sigmoid(5) = 0.99331
    assert share.shape == (500, 1)
    assert share.mean().item() == pytest.approx(0.99331, abs=1e-3)
    assert share.std() < 1e-3


@pytest.mark.parametrize("family", MAKERS)
def test_training_mixes_both_paths_and_eval_takes_the_clean_one(family):
    model = MAKERS[family]()
    handle = mixed(model, dual_path=True)
    block, mlp, x = block_of(model), model.model.layers[0].mlp, states()
    torch.nn.init.normal_(block.augment_gating[2].weight)
    torch.nn.init.zeros_(block.augment_gating[2].bias)
    clean = NAIVE[family](mlp, block, x)
    torch.testing.assert_close(ffn(model, x), clean, rtol=1e-10, atol=1e-10)

    model.train()
    torch.manual_seed(9)
    output = ffn(model, x)
    torch.manual_seed(9)
    noised = block.augmentator(x)
    gate = block.augment_gating
    hidden = (x @ gate[0].weight.T + gate[0].bias).relu()
    share = (hidden @ gate[2].weight.T + gate[2].bias).sigmoid()
    # Base and LoRA experts are routed anew for the noised token.
    expected = share * clean + (1 - share) * NAIVE[family](mlp, block, noised)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    with handle.disabled():
        assert not torch.allclose(ffn(model, x), output)


def test_its_losses_carry_their_weights():
    def losses(**weights):
        model = llama().train()
        handle = mixed(model, dual_path=True, **weights)
        torch.manual_seed(1)
        model(tokens())
        return handle.losses()

    one, other = losses(alpha_bal=1.0, beta_unc=1.0), losses()
    assert list(other) == ["balance", "gate_balance", "uncertainty"]
    torch.testing.assert_close(other["gate_balance"], 0.01 * one["gate_balance"])
    torch.testing.assert_close(other["uncertainty"], 0.1 * one["uncertainty"])
    torch.testing.assert_close(other["balance"], one["balance"])


def test_it_is_off_by_default():
    handle = attach(llama(), MixLoraConfig())
    assert not any("augment" in name for name, _ in handle.named_parameters())
