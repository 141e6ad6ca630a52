"""The auxiliary losses, by hand, and which tokens count in them."""

import math

import pytest
import torch
from mixlora_lab import MAKERS, gptoss, llama, mixed, tokens

from gptoss_tools.models.mixlora_layers import Routing, Seen
from gptoss_tools.models.mixlora_losses import (
    CONTRASTED,
    balance,
    gate_balance,
    shares_of,
    uncertainty,
)


def routed(probs, top_k):
    probs = torch.tensor(probs, dtype=torch.float64)
    weights, experts = probs.topk(top_k, dim=-1)
    return Routing(probs, experts, weights / weights.sum(-1, keepdim=True))


THREE = [[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.1, 0.2, 0.7]]


def test_the_balance_loss_is_mixtrals_by_hand():
    # Picks: tokens 1 {0, 1}, 2 {0, 2}, 3 {2, 1}: F = (2, 2, 2) / 3; P = (1.2, 0.6, 1.2) / 3
    # 3 * (2/3) * (0.4 + 0.2 + 0.4) = 2
    assert balance(routed(THREE, 2), None).item() == pytest.approx(2.0)
    # Top-1: F = (2, 0, 1) / 3; 3 * (2/3 * 0.4 + 1/3 * 0.4) = 1.2
    assert balance(routed(THREE, 1), None).item() == pytest.approx(1.2)


def test_padding_does_not_count_in_the_balance_loss():
    counted = torch.tensor([True, True, False])
    # Two tokens: F = (2, 1, 1) / 2; P = (1.1, 0.4, 0.5) / 2; 3 * (0.55 + 0.5*0.2 + 0.5*0.25)
    assert balance(routed(THREE, 2), counted).item() == pytest.approx(2.325)
    assert balance(routed(THREE, 2), torch.zeros(3, dtype=torch.bool)).item() == 0.0
    assert shares_of(routed(THREE, 2), counted).tolist() == pytest.approx([1.0, 0.5, 0.5])


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_perfect_balance_costs_top_k_and_collapse_costs_more(top_k):
    # Each expert is picked equally often; every row's numbers are close to a third.
    rows = [[0.34, 0.335, 0.325], [0.325, 0.34, 0.335], [0.335, 0.325, 0.34]]
    assert balance(routed(rows, top_k), None).item() == pytest.approx(top_k)
    collapsed = balance(routed([[0.98, 0.01, 0.01]] * 4, 1), None)
    assert collapsed.item() == pytest.approx(3 * 0.98)


def test_the_balance_losses_gradient_pushes_towards_the_rarer_expert():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    probs = logits.softmax(-1)
    weights, experts = probs.topk(1)
    balance(Routing(probs, experts, weights), None).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1] < 0).all()


def test_the_gate_balance_is_the_divergence_of_both_paths_from_uniform():
    clean, noised = routed([[0.9, 0.1]], 1), routed([[0.3, 0.7]], 1)
    # Mean (0.6, 0.4): 0.6 ln 1.2 + 0.4 ln 0.8
    expected = 0.6 * math.log(1.2) + 0.4 * math.log(0.8)
    assert gate_balance(Seen(clean, noised), None).item() == pytest.approx(expected)
    even = Seen(clean, routed([[0.1, 0.9]], 1))
    assert gate_balance(even, None).item() == pytest.approx(0.0, abs=1e-12)


def test_the_uncertainty_loss_is_infonce_by_hand():
    clean = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], dtype=torch.float64)
    noised = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-9.0, 2.0]], dtype=torch.float64)
    seen = Seen(routed(THREE, 2), routed(THREE, 2), clean, noised)
    counted = torch.tensor([True, True, False])
    # Cosines of the two counted tokens: identity; -ln(e / (e + 1)) each
    assert uncertainty(seen, counted).item() == pytest.approx(math.log1p(math.exp(-1)))
    swapped = Seen(routed(THREE, 2), routed(THREE, 2), clean, noised[[1, 0, 2]])
    assert uncertainty(swapped, counted).item() == pytest.approx(math.log1p(math.e))
    assert uncertainty(seen, torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_the_uncertainty_loss_looks_at_a_bounded_number_of_tokens():
    clean = torch.randn(3 * CONTRASTED, 2, dtype=torch.float64)
    routing = routed([[1.0]] * len(clean), 1)
    chosen = torch.linspace(0, len(clean) - 1, CONTRASTED).long()
    few = Seen(routing, routing, clean[chosen], clean[chosen])
    every = Seen(routing, routing, clean, clean)
    assert uncertainty(every, None).item() == pytest.approx(uncertainty(few, None).item())


@pytest.mark.parametrize("form", ["shared", "parallel"])
@pytest.mark.parametrize("family", MAKERS)
def test_a_models_losses_are_means_over_layers_and_real_tokens(family, form):
    model = MAKERS[family]().train()
    handle = mixed(model, router_aux_loss_coef=0.5, form=form, num_experts=3, top_k=2)
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[1, 5:] = 0
    inputs = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    model(ids, attention_mask=mask)
    rows = mask.reshape(-1).bool()
    values = []
    for layer, x in zip(handle.layers, inputs, strict=True):
        probs = (x.reshape(12, -1)[rows] @ layer.mlp.moe_gate.weight.T).softmax(-1)
        picked = torch.zeros(3, dtype=torch.float64)
        for row in probs.topk(2).indices.reshape(-1):
            picked[row] += 1 / 7  # seven real tokens
        values.append(3 * (picked * probs.mean(0)).sum())
    losses = handle.losses()
    assert losses.keys() == {"balance"}
    torch.testing.assert_close(losses["balance"], 0.5 * sum(values) / 2)
    assert handle.total_loss().requires_grad
    assert torch.equal(handle.total_loss(), losses["balance"])
    shares = handle.routing()
    assert shares.shape == (2, 3) and not shares.requires_grad
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("dual_path", [False, True])
def test_what_stands_in_padding_leaves_every_loss_alone(dual_path):
    model = llama().train()
    handle = mixed(model, dual_path=dual_path)
    ids = tokens(2, 8)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0

    def losses(changed, **more):
        torch.manual_seed(4)
        model(changed, **more)
        return torch.stack(list(handle.losses().values()))

    changed = ids.clone()
    changed[1, :3] = 9
    first = losses(ids, attention_mask=mask)
    torch.testing.assert_close(losses(changed, attention_mask=mask), first)
    assert not torch.allclose(losses(ids), first)  # without a mask every token counts
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(losses(None, inputs_embeds=embeds, attention_mask=mask), first)


def test_a_four_dimensional_mask_lets_every_token_count():
    model = llama(layers=1).train()
    handle = mixed(model)
    ids = tokens(2, 5)
    model(ids)
    every = handle.losses()["balance"]
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    model(ids, attention_mask=causal)
    torch.testing.assert_close(handle.losses()["balance"], every)


def test_the_decoder_alone_counts_as_a_forward():
    model = gptoss().train()
    handle = mixed(model)
    model.model(tokens(), torch.ones_like(tokens()))  # as TRL calls it, mask by position
    assert handle.losses().keys() == {"balance"}


def test_only_training_forwards_leave_losses():
    model = gptoss()
    handle = mixed(model)
    assert handle.losses() == {} and handle.total_loss().item() == 0.0
    assert handle.routing().shape == (0, 4)
    model(tokens())
    assert handle.losses() == {}
    model.train()
    model(tokens())
    kept = handle.losses()
    with handle.disabled(), torch.no_grad():
        model(tokens())
    assert torch.equal(handle.losses()["balance"], kept["balance"])
    with torch.no_grad():
        model(tokens())
    assert handle.losses() == {}


def test_a_failed_forward_does_not_spoil_the_next():
    model = llama().train()
    handle = mixed(model)
    with pytest.raises(IndexError):
        model(torch.full((1, 3), 10_000))
    model(tokens())
    first = handle.losses()["balance"]
    model(tokens())
    assert torch.equal(handle.losses()["balance"], first)
