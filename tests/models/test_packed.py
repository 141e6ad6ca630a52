"""Packed experts: the dequantised model's numbers and gradients from a quarter of its bytes."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.models import packed_experts
from gptoss_tools.models.layout import INDEX, write_checkpoint
from gptoss_tools.models.loading import load_model
from gptoss_tools.models.lora import lora_config
from gptoss_tools.models.machine import published_config
from gptoss_tools.models.packed import load_packed, skeleton
from gptoss_tools.models.unpacking import dequantise


@pytest.fixture(scope="module")
def folder(random_model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model"
    return write_checkpoint(random_model, random_model.config, path, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def ids():
    return torch.arange(60).reshape(2, 30) * 3 + 100


def packed(folder, **options) -> Any:
    return load_packed(folder, **{"dtype": torch.float32, "device": "cpu"} | options)


def with_lora(model) -> Any:
    """The same adapter, its B not zero, on any gpt-oss."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora_config(r=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return adapted


def learn(model, ids, *, checkpointing: bool = False) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits, and the gradients of everything that learns, after one backward pass."""
    adapted = with_lora(model)
    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    out = adapted.train()(ids, labels=ids, output_router_logits=False)
    out.loss.backward()
    learning = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    return out.logits.detach(), learning


def experts_of(seed: int, chunk: int | None = None) -> Any:
    """Experts of width 32 with random numbers, 4 of them."""
    config = published_config("openai/gpt-oss-20b")
    assert config is not None
    config.num_local_experts, config.hidden_size, config.intermediate_size = 4, 32, 32
    config.num_hidden_layers, config.vocab_size = 1, 200_000
    model: Any = skeleton(config, torch.float32, chunk=chunk)
    experts = model.model.layers[0].mlp.experts.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in chain(experts.named_parameters(), experts.named_buffers()):
        if name.endswith("_bias"):
            tensor.data.normal_(0, 0.3, generator=generator)
        else:  # any code; scales of 2**-4 to 2**-3
            low, high = (123, 125) if name.endswith("_scales") else (0, 256)
            tensor.random_(low, high, generator=generator)
    return experts.requires_grad_(False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_logits_and_gradients_are_those_of_the_cpu_to_rounding(folder, ids):
    logits, gradients = learn(packed(folder), ids)
    found, learned = learn(packed(folder, device="cuda"), ids.cuda())
    torch.testing.assert_close(found.cpu(), logits, rtol=1e-3, atol=1e-3)
    for name, gradient in gradients.items():
        torch.testing.assert_close(learned[name].cpu(), gradient, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 2, 4])
def test_logits_and_lora_gradients_are_the_bits_of_the_dequantised_model(
    folder, ids, chunk, checkpointing
):
    expected = learn(load_model(folder, device="cpu"), ids, checkpointing=checkpointing)
    found = learn(packed(folder, chunk=chunk), ids, checkpointing=checkpointing)
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys() and len(found[1]) == 16  # 2 layers, q k v o, A B
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 0
        assert torch.equal(found[1][name], gradient), name


def test_bfloat16_gives_the_dequantised_model_s_bits_and_dtypes_too(folder, ids):
    dense = load_model(folder, device="cpu", dtype="bfloat16")
    model = packed(folder, dtype=torch.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in dense.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == kinds.get(name, torch.uint8), name  # blocks and scales are new
    with torch.no_grad():
        assert torch.equal(model(ids).logits, dense(ids).logits)


def test_experts_that_add_up_in_another_order_agree_to_rounding(folder, ids):
    eager = load_model(folder, device="cpu", experts_implementation="eager")
    logits, gradients = learn(eager, ids)
    found, learned = learn(packed(folder), ids)
    assert (found - logits).norm() < 1e-5 * logits.norm()
    for name, gradient in gradients.items():
        assert (learned[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_gradients_of_input_and_routing_weights_are_finite_differences(chunk):
    experts = experts_of(5, chunk)
    torch.manual_seed(1)
    x, weights, probe = torch.randn(5, 32), torch.rand(5, 2), torch.randn(5, 32)
    chosen = torch.tensor([[0, 3], [3, 0], [0, 1], [1, 3], [3, 1]])  # none goes to expert 2

    def value(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (experts(x, chosen, weights) * probe).double().sum()

    gradients = torch.autograd.grad(value(*(inputs := leaves(x, weights))), inputs)
    for _ in range(4):
        way = torch.randn(5, 32), torch.randn(5, 2)
        step = 2e-3
        ends = [value(x + s * way[0], weights + s * way[1]) for s in (step, -step)]
        slope = (ends[0] - ends[1]) / (2 * step)
        expected = sum((g.double() * w).sum() for g, w in zip(gradients, way, strict=True))
        scale = sum(g.norm() * w.norm() for g, w in zip(gradients, way, strict=True))
        assert abs(slope - expected) < 1e-3 * scale


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def test_the_gradient_through_the_routing_reaches_the_first_layer(folder, ids):
    model = with_lora(packed(folder))
    name = "base_model.model.model.layers.0.self_attn.o_proj.lora_B.default.weight"
    weight = model.get_parameter(name)

    def loss() -> torch.Tensor:
        return model(ids).logits.double().square().mean()

    (full,) = torch.autograd.grad(loss(), weight)
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, x: (x[0], x[1], x[2].detach()))
        for layer in model.base_model.model.model.layers
    ]
    (without,) = torch.autograd.grad(loss(), weight)
    for hook in hooks:
        hook.remove()
    # The way on which the routing's share of the gradient counts most.
    way = (full - without) / (full - without).norm()
    step = 3e-3
    with torch.no_grad():
        weight += step * way
        above = loss()
        weight -= 2 * step * way
        slope = (above - loss()) / (2 * step)
    assert abs(slope - (full * way).sum()) < 0.02 * abs(slope)
    assert abs(slope - (without * way).sum()) > 0.2 * abs(slope)


def test_the_forward_pass_keeps_no_unpacked_weight_for_the_backward_pass(folder):
    shape, kept = {(4, 64, 128), (4, 64, 64), (4, 128, 64)}, {}
    for name, model in (("packed", packed(folder)), ("dense", load_model(folder, device="cpu"))):
        shapes: set[tuple[int, ...]] = set()

        def pack(tensor: torch.Tensor, shapes=shapes) -> torch.Tensor:
            shapes.add(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with_lora(model)(torch.arange(7)[None])
        kept[name] = bool(shapes & shape)
    assert kept == {"packed": False, "dense": True}


def test_gradient_checkpointing_unpacks_a_weight_twice_in_a_step_as_training_without_it(
    folder, ids, monkeypatch
):
    unpacked = 0

    def counting(blocks, *rest):
        nonlocal unpacked
        unpacked += len(blocks)
        return dequantise(blocks, *rest)

    monkeypatch.setattr(packed_experts, "dequantise", counting)
    counts = []
    for checkpointing, keep in ((False, True), (True, True), (True, False)):
        model = packed(folder)
        if not keep:
            model.model.layers[1].mlp.experts.kept.room = lambda *_: None  # the layers share it
        unpacked = 0
        learn(model, ids, checkpointing=checkpointing)
        counts.append(unpacked)
    # 2 layers, 2 matrices, 4 experts, of which one has no tokens: forward and backward, 2 * 14
    assert counts == [28, 28, 42]


def test_a_token_gets_the_weighted_sum_of_its_experts_and_no_other_is_unpacked(monkeypatch):
    experts = experts_of(2)
    x, weights = torch.ones(1, 32), torch.tensor([[0.75, 0.25]])
    unpacked = []

    def counting(blocks, *rest):
        unpacked.append(len(blocks))
        return dequantise(blocks, *rest)

    monkeypatch.setattr(packed_experts, "dequantise", counting)
    found = experts(x, torch.tensor([[3, 1]]), weights)
    assert sum(unpacked) == 2 * 2  # two experts, two matrices each
    gate_up = mxfp4.decode(experts.gate_up_proj_blocks, experts.gate_up_proj_scales, x.dtype)
    down = mxfp4.decode(experts.down_proj_blocks, experts.down_proj_scales, x.dtype)
    expected = torch.zeros(1, 32)
    for expert, weight in ((3, 0.75), (1, 0.25)):
        rows = x @ gate_up[expert].T + experts.gate_up_proj_bias[expert]
        gate, up = rows[:, ::2].clamp(max=7), rows[:, 1::2].clamp(-7, 7)
        rows = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        expected += weight * (rows @ down[expert].T + experts.down_proj_bias[expert])
    torch.testing.assert_close(found, expected)
    assert experts(x[:0], torch.zeros(0, 2, dtype=torch.long), weights[:0]).shape == (0, 32)


def test_generation_draws_the_same_tokens(folder, ids):
    dense: Any = load_model(folder, device="cpu")
    model = packed(folder)
    assert model.generation_config.eos_token_id == dense.generation_config.eos_token_id
    options = {"max_new_tokens": 12, "min_new_tokens": 12}
    for sampled in (False, True):
        drawn = []
        for one in (dense, model):
            torch.manual_seed(4)
            drawn.append(one.generate(ids, do_sample=sampled, **options))
        assert drawn[0].shape == (2, 42) and torch.equal(*drawn)


def test_the_20b_takes_a_third_of_its_bfloat16_bytes():
    config = published_config("openai/gpt-oss-20b")
    assert config is not None
    model = skeleton(config, torch.bfloat16)
    held = sum(t.nbytes for t in chain(model.parameters(), model.buffers()))
    # The published checkpoint's 13,761,264,768 bytes, and two rotary tables of 32 float32.
    assert held == 13_761_264_768 + 2 * 32 * 4
    # 20,914,757,184 parameters, two bytes each
    assert held <= 0.34 * 2 * 20_914_757_184


def test_the_saved_adapter_holds_the_adapter_alone_and_loads_again(folder, ids, tmp_path):
    model = with_lora(packed(folder))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == 16 and all("lora_" in name for name in saved)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(folder)
    again = PeftModel.from_pretrained(load_model(folder, device="cpu"), str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the checkpoint with one tensor changed by a function, gone where it gives None."""

    def break_it(name: str, change):
        copy = tmp_path / "broken"
        shutil.copytree(folder, copy)
        index = json.loads((copy / INDEX).read_text())
        shard = copy / index["weight_map"][name]
        tensors = load_file(shard)
        tensors[name] = change(tensors[name])
        save_file({n: t for n, t in tensors.items() if t is not None}, shard)
        return copy

    return break_it


def test_a_missing_tensor_one_of_another_shape_and_a_missing_file_are_named(broken, folder):
    copy = broken("model.layers.1.mlp.experts.down_proj_scales", lambda tensor: None)
    with pytest.raises(DataError, match=r"lacks model\.layers\.1\.mlp\.experts\.down_proj_scales"):
        packed(copy)
    shutil.rmtree(copy)
    copy = broken("model.norm.weight", lambda tensor: tensor[:1])
    with pytest.raises(DataError, match=r"model\.norm\.weight .*\(1,\), not \(64,\)"):
        packed(copy)
    next(copy.glob("*.safetensors")).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        packed(copy)


def test_what_cannot_stay_packed_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="float16"):
        packed(folder, dtype=torch.float16)
    with pytest.raises(ConfigError, match="sinks"):
        packed(folder, attn_implementation="sdpa")
    with pytest.raises(ConfigError, match="chunk is 0"):
        packed(folder, chunk=0)
    shutil.copytree(folder, tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no MXFP4 experts"):
        packed(tmp_path / "dense")
