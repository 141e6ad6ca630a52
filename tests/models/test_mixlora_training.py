"""MixLoRA in training and generation: gradients, checkpointing, causality, caches."""

from functools import partial

import pytest
import torch
from mixlora_lab import MAKERS, block_of, gptoss, llama, mixed, states, tokens
from torch.func import functional_call
from torch.utils.checkpoint import set_checkpoint_early_stop

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.mixlora import MixLoraConfig, attach
from gptoss_tools.models.mixlora_losses import balance

SMALL = {"hidden_size": 4, "intermediate_size": 5, "layers": 1}


class Weighed(torch.nn.Module):
    """One FFN's outputs under fixed weights, and its balance loss: a number to differentiate."""

    def __init__(self, model):
        super().__init__()
        self.block = block_of(model)
        self.call = (model.model.layers[0].mlp, type(model.model.layers[0].mlp).forward)

    def forward(self, x):
        mlp, original = self.call
        torch.manual_seed(2)  # the dual path's noise
        output = self.block(mlp, partial(original, mlp), x)
        output = output[0] if isinstance(output, tuple) else output
        torch.manual_seed(2)
        return (output * torch.randn_like(output)).sum() + balance(self.block.route(x), None)


@pytest.mark.parametrize("settings", [{}, {"dual_path": True}, {"form": "parallel"}])
@pytest.mark.parametrize("family", MAKERS)
def test_gradients_are_those_of_finite_differences(family, settings):
    """One FFN, since transformers computes norms and losses in float32 in any model."""
    model = MAKERS[family](**SMALL)
    mixed(model, r=2, num_experts=3, jitter_noise=0.1, **settings).train()
    weighed = Weighed(model)
    names = [name for name, _ in weighed.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in weighed.parameters()]
    x = states(3, 4).requires_grad_()

    def value(x, *values):
        return functional_call(weighed, dict(zip(names, values, strict=True)), (x,))

    assert len(values) == {"form": 7, "dual_path": 25}.get(next(iter(settings), ""), 19)
    assert torch.autograd.gradcheck(value, (x, *values), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("form", ["shared", "parallel"])
@pytest.mark.parametrize("family", MAKERS)
def test_every_new_parameter_and_nothing_else_gets_a_gradient(family, form):
    model = MAKERS[family]().train()
    handle = mixed(model, form=form, dual_path=True)
    ids = tokens(4, 16)
    (model(ids, labels=ids).loss + handle.total_loss()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("mixlora."):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_experts_start_to_differ_with_the_first_step():
    model = llama().train()
    handle = attach(model, MixLoraConfig(lora_dropout=0.0)).double()
    optimizer = torch.optim.SGD(handle.parameters(), lr=1.0)
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    pairs = handle.layers[0].mlp.up_proj.experts
    assert all(pair.lora_B.weight.abs().max() > 0 for pair in pairs)
    assert not torch.equal(pairs[0].lora_B.weight, pairs[1].lora_B.weight)


def trained_once(family, *, checkpointing, **settings):
    model = MAKERS[family]()
    handle = mixed(model, lora_dropout=0.1, jitter_noise=0.1, **settings)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    ids = tokens(3, 8)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    torch.manual_seed(3)
    loss = model(ids, attention_mask=mask, labels=ids).loss
    parts = handle.losses()
    (loss + 1000 * handle.total_loss()).backward()
    grads = {name: p.grad for name, p in handle.named_parameters()}
    return loss.detach(), parts, handle.losses(), grads


@pytest.mark.parametrize("dual_path", [False, True])
@pytest.mark.parametrize("family", MAKERS)
def test_gradient_checkpointing_changes_neither_losses_nor_gradients(family, dual_path):
    loss, parts, _, grads = trained_once(family, checkpointing=False, dual_path=dual_path)
    other, other_parts, after, other_grads = trained_once(
        family, checkpointing=True, dual_path=dual_path
    )
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    assert parts.keys() == other_parts.keys()
    for name, part in parts.items():
        torch.testing.assert_close(other_parts[name], part, rtol=1e-12, atol=0)
        # The backward pass computed every layer again, and nothing was counted twice.
        torch.testing.assert_close(after[name], part, rtol=1e-12, atol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(other_grads[name], grad, rtol=1e-9, atol=1e-12)


def test_two_forwards_before_one_backward_work_with_checkpointing():
    model = llama()
    handle = mixed(model)
    model.gradient_checkpointing_enable()
    model.train()
    total = torch.zeros(())
    expected = 0.0
    with set_checkpoint_early_stop(False):  # layers are computed again to their very end
        for ids in (tokens(2, 6), tokens(3, 5, seed=8)):
            loss = model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss
            total = total + loss + handle.total_loss()
            expected += loss.item() + handle.total_loss().item()
        assert total.item() == pytest.approx(expected)
        last = handle.losses()["balance"].item()
        total.backward()
    assert all(p.grad is not None for p in handle.parameters())
    # What the backward pass computed again has not taken the last forward's place.
    assert handle.losses()["balance"].item() == last


def test_reentrant_checkpointing_is_refused():
    model = llama()
    mixed(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ConfigError, match="reentrant"):
        model.train()(tokens(), labels=tokens())


def test_low_precision_trains_float32_parameters():
    model = gptoss("grouped_mm", torch.bfloat16).train()
    handle = attach(model, MixLoraConfig(r=2))
    (model(tokens(), labels=tokens()).loss + handle.total_loss()).backward()
    assert {p.grad.dtype for p in handle.parameters()} == {torch.float32}
    assert model(tokens()).logits.dtype == torch.bfloat16
    model = llama(torch.float32).train()
    handle = attach(model, MixLoraConfig(r=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens(), labels=tokens()).loss + handle.total_loss()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in handle.parameters())


@pytest.mark.parametrize("form", ["shared", "parallel"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("family", MAKERS)
def test_no_token_sees_its_future_its_neighbours_or_padding(family, train, form):
    """In train mode the generator is seeded alike: noise and jitter go by place, not by content."""
    model = MAKERS[family]()
    mixed(model, dual_path=True, jitter_noise=0.1, form=form)
    model.train(train)
    ids = tokens(3, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padding on the left

    def logits(changed):
        torch.manual_seed(11)
        return model(changed, attention_mask=mask).logits

    before = logits(ids)
    future = ids.clone()
    future[0, 6:] = (future[0, 6:] + 7) % 60 + 2
    torch.testing.assert_close(logits(future)[0, :6], before[0, :6], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(logits(future)[0, 6:], before[0, 6:])
    padding = ids.clone()
    padding[1, :4] = 3
    torch.testing.assert_close(logits(padding)[1, 4:], before[1, 4:], rtol=1e-10, atol=1e-10)
    others = ids.clone()
    others[1:] = (others[1:] + 5) % 60 + 2
    torch.testing.assert_close(logits(others)[0], before[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["shared", "parallel"])
@pytest.mark.parametrize("family", MAKERS)
def test_generation_with_a_cache_is_generation_without(family, form):
    model = MAKERS[family]()
    mixed(model, form=form, dual_path=True)
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    assert cached.shape[1] > 8


def test_an_optimizer_step_lowers_the_loss():
    model = gptoss("grouped_mm", torch.float32).train()
    torch.manual_seed(0)
    handle = attach(model, MixLoraConfig())
    optimizer = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    ids = tokens(4, 12)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        (loss + handle.total_loss()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
