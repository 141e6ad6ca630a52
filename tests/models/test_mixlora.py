"""MixLoRA computes what the paper says, starts as the base, and refuses what it cannot serve."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixlora_lab import MAKERS, NAIVE, block_of, ffn, gptoss, llama, mixed, states, tokens
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma3TextConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.mixlora import MixLoraConfig, attach, handle_of
from gptoss_tools.models.mixlora_config import ATTENTION, FFN
from gptoss_tools.models.mixlora_layers import route

FORMS = ("shared", "parallel")
BASES = {
    "gptoss float32": lambda: gptoss("grouped_mm", torch.float32, num_experts_per_tok=3),
    "gptoss bfloat16": lambda: gptoss("grouped_mm", torch.bfloat16, num_experts_per_tok=3),
    "gptoss eager": lambda: gptoss("eager", torch.float32, num_experts_per_tok=4),
    "llama float32": lambda: llama(torch.float32),
    "llama bfloat16": lambda: llama(torch.bfloat16),
}


@torch.no_grad()  # a CPU's SDPA takes another kernel, with other last bits, where gradients flow
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", FORMS)
def test_a_new_mixlora_is_the_base(base, form):
    model = BASES[base]()
    before = model(tokens()).logits
    handle = attach(model, MixLoraConfig(form=form, dual_path=True))
    if form == "parallel":
        assert torch.equal(model(tokens()).logits, before)
    else:
        torch.testing.assert_close(model(tokens()).logits, before)
    for name, parameter in handle.named_parameters():
        if "mlp" in name and "lora_B" in name:
            parameter.normal_()
    assert not torch.equal(model(tokens()).logits, before)
    with handle.disabled():
        assert torch.equal(model(tokens()).logits, before)


def test_the_weights_rounding_does_not_disturb_a_bfloat16_base():
    model = gptoss("grouped_mm", torch.bfloat16)
    x = states(40, dtype=torch.bfloat16)
    before = ffn(model, x)
    torch.manual_seed(0)
    attach(model, MixLoraConfig(num_experts=8, top_k=8))
    # Eight weights near 1/8, rounded to 8 bits, miss 1 by 2^-10 and more; sums of h would show it.
    weights = block_of(model).route(x).weights.bfloat16().sum(-1, dtype=torch.float32)
    assert (weights - 1).abs().max() > 2**-11
    assert torch.equal(ffn(model, x), before)


def peft_name(name):
    path = name.replace(".experts.0", "").replace(".weight", ".default.weight")
    return f"base_model.model.model.{path}"


def test_one_expert_on_a_llama_is_plain_lora():
    base = llama()
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=[*ATTENTION, *FFN], init_lora_weights=True)
    peft = get_peft_model(copy.deepcopy(base), lora).eval().double()
    mixed(base, num_experts=1, top_k=1)
    state = {name: p for name, p in base.mixlora.named_parameters() if "moe_gate" not in name}
    with torch.no_grad():
        for name, value in state.items():
            peft.get_parameter(peft_name(name)).copy_(value)
    # Every LoRA tensor of PEFT's has been set: 2 layers, 7 projections, A and B.
    assert len(state) == sum("lora_" in name for name, _ in peft.named_parameters()) == 28
    output, expected = (m(tokens(), labels=tokens()) for m in (base, peft))
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-12, atol=1e-12)
    output.loss.backward()
    expected.loss.backward()
    for name, value in state.items():
        grad = peft.get_parameter(peft_name(name)).grad
        torch.testing.assert_close(value.grad, grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 2), (4, 4), (3, 1)])
def test_the_shared_form_is_the_sum_over_tokens_and_experts(family, experts, top_k):
    model = MAKERS[family]()
    mixed(model, num_experts=experts, top_k=top_k)
    x = states()
    expected = NAIVE[family](model.model.layers[0].mlp, block_of(model), x)
    torch.testing.assert_close(ffn(model, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("targets", [["gate_proj"], ["up_proj"], ["down_proj"], list(FFN[1:])])
def test_any_part_of_the_ffn_may_carry_the_experts(family, targets):
    model = MAKERS[family]()
    mixed(model, target_modules=targets)
    x = states()
    expected = NAIVE[family](model.model.layers[0].mlp, block_of(model), x)
    torch.testing.assert_close(ffn(model, x), expected, rtol=1e-10, atol=1e-10)
    assert {n.split(".")[3] for n, _ in handle_of(model).named_parameters()} == {
        "moe_gate",
        *targets,
    }


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_experts_implementation_gives_the_same(implementation):
    model = gptoss(implementation, torch.float32)
    mixed(model)
    x = states(dtype=torch.float32)
    expected = NAIVE["gptoss"](model.model.layers[0].mlp, block_of(model), x)
    torch.testing.assert_close(ffn(model, x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", MAKERS)
def test_the_parallel_form_adds_routed_lora_to_the_ffn(family):
    model = MAKERS[family]()
    x = states()
    alone = ffn(model, x)
    handle = mixed(model, form="parallel")
    block = handle.layers[0].mlp
    added = (ffn(model, x) - alone)[0]
    for token, delta in zip(x[0], added, strict=True):
        probs = (block.moe_gate.weight @ token).softmax(-1)
        first, second = probs.argsort(descending=True)[:2].tolist()
        expected = torch.zeros_like(token)
        for k in (first, second):
            pair = block.block.experts[k]
            share = probs[k] / (probs[first] + probs[second])
            # alpha 6 over rank 3
            expected += 2 * share * (pair.lora_B.weight @ (pair.lora_A.weight @ token))
        torch.testing.assert_close(delta, expected, rtol=1e-9, atol=1e-9)


DENSE = {
    "mistral": (MistralConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "gemma2": (Gemma2Config, {"head_dim": 8}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 8}),
}


def from_config(kind, **options):
    torch.manual_seed(0)
    config = kind(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        **options,
    )
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("family", DENSE)
def test_other_dense_families_are_served(family):
    kind, options = DENSE[family]
    model = from_config(kind, **options)
    before = model(tokens()).logits
    attach(model, MixLoraConfig())
    torch.testing.assert_close(model(tokens()).logits, before, rtol=1e-12, atol=1e-12)
    model = from_config(kind, **options)
    mixed(model)
    expected = NAIVE["llama"](model.model.layers[1].mlp, block_of(model, 1), states())
    torch.testing.assert_close(ffn(model, states(), 1), expected, rtol=1e-10, atol=1e-10)


def test_only_the_new_parameters_learn_and_they_are_float32():
    model = gptoss("grouped_mm", torch.bfloat16)
    handle = attach(model, MixLoraConfig(r=2))
    assert handle is model.mixlora
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"mixlora.{name}" for name, _ in handle.named_parameters()}
    assert {p.dtype for p in handle.parameters()} == {torch.float32}
    # Per layer: router 4*16; experts 4 * rank 2 * (gate 16+24, up 16+24, down 24+16);
    # attention rank 2 * (q 16+16, k and v 16+8 each, o 16+16)
    layer = 64 + 4 * 2 * 120 + 2 * 112
    assert sum(p.numel() for p in handle.parameters()) == 2 * layer


def test_the_start_is_drawn_as_promised():
    torch.manual_seed(7)
    handle = attach(llama(hidden_size=256), MixLoraConfig(r=16, num_experts=8))
    again = llama(hidden_size=256)
    torch.manual_seed(7)
    attach(again, MixLoraConfig(r=16, num_experts=8))
    for name, parameter in handle.named_parameters():
        assert torch.equal(parameter, again.mixlora.get_parameter(name))
        if "lora_B" in name:
            assert not parameter.any()
        elif "lora_A" in name:
            # kaiming_uniform with a = sqrt(5) is uniform within 1 / sqrt(inputs)
            bound = parameter.shape[1] ** -0.5
            assert 0.95 * bound < parameter.abs().max() <= bound
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


@given(
    st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.integers(0, 10_000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_routing_picks_the_largest_and_its_weights_sum_to_one(sizes, seed, dtype):
    experts, top_k = sizes
    generator = torch.Generator().manual_seed(seed)
    gate = torch.nn.Linear(5, experts, bias=False)
    torch.nn.init.normal_(gate.weight, 0, 2, generator=generator)
    x = torch.randn(3, 4, 5, generator=generator).to(dtype)
    routing = route(gate, x, top_k)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert routing.probs.dtype == routing.weights.dtype == wide
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(3, 4, dtype=wide))
    torch.testing.assert_close(routing.probs.sum(-1), torch.ones(3, 4, dtype=wide))
    picked = routing.probs.gather(-1, routing.experts)
    torch.testing.assert_close(routing.weights, picked / picked.sum(-1, keepdim=True))
    rest = routing.probs.scatter(-1, routing.experts, -1.0)
    assert (picked.min(-1).values >= rest.max(-1).values).all()
    assert all(len(set(row)) == top_k for row in routing.experts.reshape(-1, top_k).tolist())
    assert (routing.shares(wide).sum(-2) > 0).sum(-1).le(top_k).all()


def test_the_router_stays_in_float32_under_autocast():
    gate = torch.nn.Linear(64, 4, bias=False)
    x = torch.randn(8, 64)
    expected = route(gate, x, 2).probs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(route(gate, x, 2).probs, expected)


def test_jitter_disturbs_the_router_in_training_only():
    model = llama()
    mixed(model, jitter_noise=0.5)
    x = states()
    quiet = ffn(model, x)
    assert torch.equal(ffn(model, x), quiet)
    model.train()
    assert not torch.equal(ffn(model, x), quiet)
    block = block_of(model)
    # Routing alone is disturbed: with one expert there is no choice, and nothing changes.
    single = llama()
    mixed(single, jitter_noise=0.5, num_experts=1, top_k=1)
    still = ffn(single, x)
    torch.testing.assert_close(ffn(single.train(), x), still)
    assert block.config.jitter_noise == 0.5


def test_a_copy_of_the_model_stands_on_its_own():
    model = llama()
    mixed(model)
    model.train()(tokens(), labels=tokens()).loss.backward()
    copied = copy.deepcopy(model).eval()
    model.eval()
    before = model(tokens()).logits
    assert torch.equal(copied(tokens()).logits, before)
    with torch.no_grad():
        for parameter in copied.mixlora.parameters():
            parameter.zero_()
    assert torch.equal(model(tokens()).logits, before)
    assert not torch.equal(copied(tokens()).logits, before)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"top_k": 5}, "top_k 5 is more than num_experts 4"),
        ({"num_experts": 0}, "num_experts"),
        ({"r": 2.5}, "r is 2.5"),
        ({"top_k": True}, "top_k"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"router_aux_loss_coef": -0.1}, "router_aux_loss_coef"),
        ({"router_aux_loss_coef": float("nan")}, "router_aux_loss_coef"),
        ({"router_init_range": 0.0}, "router_init_range"),
        ({"jitter_noise": -0.1}, "jitter_noise"),
        ({"form": "beside"}, "form 'beside'"),
        ({"target_modules": ["q_proj"]}, "no part of the FFN"),
        ({"target_modules": ["gate_proj", "router"]}, "'router'"),
        ({"target_modules": "gate_proj"}, "target_modules"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, word):
    with pytest.raises(ConfigError, match=word):
        MixLoraConfig(**options)


def bert():
    return BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: torch.nn.Linear(2, 2), "transformers model"),
        (bert, "no decoder layers"),
        (lambda: from_config(Phi3Config), "no linear q_proj"),
        (lambda: from_config(Qwen3MoeConfig, head_dim=8), "has no gate_proj"),
        (lambda: get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])), "transformers"),
        (lambda: get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).model, "q_proj"),
    ],
)
def test_models_that_cannot_be_served_are_refused_untouched(make, word):
    model = make()
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ConfigError, match=word):
        attach(model, MixLoraConfig())
    assert [p.requires_grad for p in model.parameters()] == before
    assert not hasattr(model, "mixlora")


def test_an_ffn_that_only_looks_gated_is_refused():
    model = llama()
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))
    with pytest.raises(ConfigError, match=r"layer 1 .* is not down"):
        attach(model, MixLoraConfig())
    attach(model, MixLoraConfig(form="parallel"))


def test_a_second_mixlora_is_refused():
    model = llama()
    attach(model, MixLoraConfig())
    with pytest.raises(ConfigError, match="already"):
        attach(model, MixLoraConfig())
    with pytest.raises(ConfigError, match="carries no MixLoRA"):
        handle_of(llama())


def packed():
    """A gpt-oss whose experts are bytes and whose FFN passes no gradient on, as MXFP4's kernels."""
    model = gptoss()
    for layer in model.model.layers:
        plain = layer.mlp.forward
        layer.mlp.forward = torch.no_grad()(plain)
    return model


def test_packed_experts_serve_the_parallel_form_for_inference_only():
    model = packed()
    before = model(tokens()).logits
    handle = mixed(model, form="parallel")
    with torch.no_grad():
        assert not torch.equal(model(tokens()).logits, before)
    with handle.disabled():
        assert torch.equal(model(tokens()).logits, before)
    with pytest.raises(ConfigError, match="pass no gradient on"):
        model.train()(tokens(), labels=tokens())
    bytes_only = gptoss()
    for layer in bytes_only.model.layers:
        experts = layer.mlp.experts
        experts.gate_up_proj = torch.nn.Parameter(
            torch.zeros(4, 48, 8, dtype=torch.uint8), requires_grad=False
        )
    with pytest.raises(ConfigError, match="packed"):
        attach(bytes_only, MixLoraConfig())
    assert attach(bytes_only, MixLoraConfig(form="parallel")) is bytes_only.mixlora
