"""MixLoRA on disk: the published format, exact round trips, and errors that name the tensor."""

import json

import pytest
import torch
from mixlora_lab import MAKERS, gptoss, llama, mixed, tokens
from safetensors.torch import load_file, save_file

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.models.mixlora import MixLoraConfig, attach, is_mixlora, load, save
from gptoss_tools.models.names import base_of

TENSORS = "adapter_model.safetensors"


@pytest.mark.parametrize("dual_path", [False, True])
@pytest.mark.parametrize("form", ["shared", "parallel"])
@pytest.mark.parametrize("family", MAKERS)
def test_a_saved_mixlora_comes_back_bit_for_bit(family, form, dual_path, tmp_path):
    model = MAKERS[family](dtype=torch.float32)
    handle = mixed(model, form=form, dual_path=dual_path, jitter_noise=0.25, top_k=3)
    save(model, tmp_path / "adapter")
    other = MAKERS[family](dtype=torch.float32)
    state = torch.get_rng_state()
    loaded = load(other, tmp_path / "adapter")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(other(tokens()).logits, model(tokens()).logits)
    assert loaded.config == handle.config
    assert not any(p.requires_grad for p in other.parameters())
    again = MAKERS[family](dtype=torch.float32)
    load(again, tmp_path / "adapter", trainable=True)
    assert all(p.requires_grad for p in again.mixlora.parameters())
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        TENSORS,
    ]


def test_names_and_shapes_are_the_published_ones(tmp_path):
    model = gptoss(dtype=torch.float32, layers=1)
    attach(model, MixLoraConfig(num_experts=3, r=2))
    save(model, tmp_path)
    held = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / TENSORS).items()}
    layer = "mixlora.layers.0."
    sizes = {"gate_proj": (16, 24), "up_proj": (16, 24), "down_proj": (24, 16)}
    expected = {f"{layer}mlp.moe_gate.weight": (3, 16)}
    for name, (inputs, outputs) in sizes.items():
        for e in range(3):
            expected[f"{layer}mlp.{name}.experts.{e}.lora_A.weight"] = (2, inputs)
            expected[f"{layer}mlp.{name}.experts.{e}.lora_B.weight"] = (outputs, 2)
    for name, (inputs, outputs) in {
        "q_proj": (16, 16),
        "k_proj": (16, 8),
        "v_proj": (16, 8),
        "o_proj": (16, 16),
    }.items():
        expected[f"{layer}self_attn.{name}.lora_A.weight"] = (2, inputs)
        expected[f"{layer}self_attn.{name}.lora_B.weight"] = (outputs, 2)
    assert held == expected


def test_the_other_forms_add_their_own_names(tmp_path):
    model = llama(dtype=torch.float32, layers=1)
    attach(
        model,
        MixLoraConfig(
            form="parallel", dual_path=True, num_experts=2, r=2, target_modules=("up_proj",)
        ),
    )
    save(model, tmp_path)
    mlp = "mixlora.layers.0.mlp."
    assert set(load_file(tmp_path / TENSORS)) == {
        f"{mlp}moe_gate.weight",
        *(f"{mlp}block.experts.{e}.lora_{x}.weight" for e in (0, 1) for x in "AB"),
        *(f"{mlp}augment_gating.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"{mlp}augmentator.{scale}_scale" for scale in ("alpha", "beta")),
    }


def test_the_config_has_upstreams_keys_and_the_ones_it_forgets(tmp_path):
    model = llama(dtype=torch.float32)
    attach(model, MixLoraConfig(base_model_name_or_path="owner/llama", jitter_noise=0.1))
    save(model, tmp_path)
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "bias": "none",
        "peft_type": "MIXLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "owner/llama",
        **lora,
        "target_modules": [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ],
        "routing_strategy": "mixlora",
        "num_experts": 4,
        "top_k": 2,
        "act_fn": "silu",
        "expert_lora": lora,
        "router_loss": True,
        "router_aux_loss_coef": 0.001,
        "router_init_range": 0.02,
        "jitter_noise": 0.1,
        "form": "shared",
        "dual_path": False,
    }
    assert base_of(tmp_path) == "owner/llama"
    model.mixlora.config = MixLoraConfig()
    model.config._name_or_path = model.name_or_path = "the/base"
    save(model, tmp_path)
    assert base_of(tmp_path) == "the/base"


def test_upstreams_folder_is_read(tmp_path):
    model = llama(dtype=torch.float32)
    mixed(model, r=4, lora_alpha=8)
    save(model, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    (tmp_path / TENSORS).unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    # As upstream 0.1 writes it, without the router's keys; targets by name.
    upstream = {
        "bias": "none",
        "peft_type": "MIXLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "target_modules": {
            **dict.fromkeys(["q_proj", "k_proj", "v_proj", "o_proj"], True),
            **dict.fromkeys(["gate_proj", "down_proj", "up_proj"], True),
            "fc1": False,
        },
        "routing_strategy": "mixtral",
        "num_experts": 4,
        "act_fn": "silu",
        "top_k": 2,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(upstream))
    other = llama(dtype=torch.float32)
    assert load(other, tmp_path).config.router_aux_loss_coef == 0.001
    assert torch.equal(other(tokens()).logits, model(tokens()).logits)


@pytest.fixture
def saved(tmp_path):
    model = llama(dtype=torch.float32)
    mixed(model)
    save(model, tmp_path)
    return tmp_path


GATE = "mixlora.layers.1.mlp.moe_gate.weight"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop(GATE), rf"{TENSORS} lacks {GATE}"),
        (lambda t: t.update({GATE + "s": t[GATE].clone()}), rf"holds {GATE}s, which its config"),
        (lambda t: t.update({GATE: t[GATE][:2]}), rf"{GATE} is \[2, 16\].*needs \[4, 16\]"),
        (lambda t: t[GATE].fill_(float("nan")), f"{GATE} holds NaN"),
        (lambda t: t[GATE].fill_(float("inf")), f"{GATE} holds NaN or infinite"),
        (lambda t: t.update({"lm_head.weight": t[GATE].clone()}), "holds lm_head.weight"),
        (
            lambda t: [t.pop(k) for k in list(t) if "layers.1" in k],
            "holds 1 layers and the model has 2",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, word):
    tensors = load_file(saved / TENSORS)
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, saved / TENSORS)
    model = llama(dtype=torch.float32)
    before = model(tokens()).logits
    with pytest.raises(DataError, match=word):
        load(model, saved)
    assert not hasattr(model, "mixlora")
    assert torch.equal(model(tokens()).logits, before)


def test_another_base_is_refused(saved):
    with pytest.raises(DataError, match=r"q_proj.lora_A.weight is \[3, 16\].*needs \[3, 32\]"):
        load(llama(dtype=torch.float32, hidden_size=32), saved)
    with pytest.raises(DataError, match="holds 2 layers and the model has 3"):
        load(llama(dtype=torch.float32, layers=3), saved)
    with pytest.raises(DataError, match="act_fn 'silu'"):
        load(gptoss(dtype=torch.float32), saved)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"peft_type": "LORA"}, "describes no MixLoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"use_rslora": True}, "rank-stabilised"),
        ({"routing_strategy": "mixlora-switch"}, "'mixlora-switch'"),
        ({"expert_lora": {"r": 64}}, "the experts another r"),
        ({"top_k": 9}, "top_k 9 is more"),
        ({"r": "many", "expert_lora": None}, "r is 'many'"),
        ({"lora_dropout": "much", "expert_lora": None}, "not supported"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
    ],
)
def test_configs_this_code_cannot_run_are_refused(saved, change, word):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=word) as caught:
        load(llama(dtype=torch.float32), saved)
    assert "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"junk" * 20, None])
@pytest.mark.parametrize("name", [TENSORS, "adapter_model.bin"])
def test_a_damaged_or_missing_file_is_named(saved, name, content):
    (saved / TENSORS).unlink()
    if content is not None:
        (saved / name).write_bytes(content)
    with pytest.raises(DataError, match="adapter_model"):
        load(llama(dtype=torch.float32), saved)


def test_a_pickle_that_would_run_code_is_refused(saved):
    (saved / TENSORS).unlink()
    torch.save({"mixlora.layers.0.x": print}, saved / "adapter_model.bin")
    with pytest.raises(DataError, match=r"adapter_model\.bin cannot be read"):
        load(llama(dtype=torch.float32), saved)


def test_a_mixlora_is_recognised_by_its_config(saved, tmp_path):
    assert is_mixlora(saved)
    (saved / TENSORS).unlink()
    assert is_mixlora(str(saved))
    (saved / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert not is_mixlora(saved)
    for text in ("[]", "{", ""):
        (saved / "adapter_config.json").write_text(text)
        assert not is_mixlora(saved)
    assert not is_mixlora(tmp_path / "nowhere")


def test_a_model_without_a_mixlora_cannot_be_saved(tmp_path):
    with pytest.raises(ConfigError, match="carries no MixLoRA"):
        save(llama(), tmp_path)


def test_a_failed_save_leaves_the_old_adapter(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = llama(dtype=torch.float32)
    mixed(model, seed=4)

    def full(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("gptoss_tools.models.mixlora_files.os.replace", full)
    with pytest.raises(OSError, match="full"):
        save(model, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
