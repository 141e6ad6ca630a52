"""Loading: what `auto` means, what is refused before a weight loads, and no made-up tensors."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_lab import HURRIED

from gptoss_tools.errors import ConfigError, DataError, MachineError
from gptoss_tools.models import loading
from gptoss_tools.models.layout import write_checkpoint
from gptoss_tools.models.lora import lora_config
from gptoss_tools.models.tiny_cache import tiny_path


@pytest.fixture(scope="module")
def folder(prompts, tmp_path_factory):
    return tiny_path(tmp_path_factory.mktemp("tiny"), prompts=prompts, recipe=HURRIED)


def test_auto_on_a_cpu_is_float32_eager_and_grouped_experts(folder):
    model = loading.load_model(folder, device="cpu")
    assert model.dtype == torch.float32 and model.device.type == "cpu"
    assert model.config._attn_implementation == "eager"
    assert model.config._experts_implementation == "grouped_mm"
    assert not model.training
    assert loading.load_model(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_experts_implementations_agree_in_logits_and_gradients(folder):
    ids = torch.arange(60).reshape(2, 30) + 300
    results = []
    for name in loading.EXPERTS:
        model = loading.load_model(folder, device="cpu", experts_implementation=name)
        logits = model(ids).logits
        logits.square().mean().backward()
        results.append((logits, model.model.embed_tokens.weight.grad))
    for logits, gradient in results[1:]:
        torch.testing.assert_close(logits, results[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-6)


def test_attention_is_eager_wherever_sinks_must_learn():
    gpu = torch.device("cuda", 0)
    assert loading.choose_attention("auto", torch.device("cpu"), for_training=False) == "eager"
    assert loading.choose_attention("auto", gpu, for_training=True) == "eager"
    assert loading.choose_attention("flex_attention", gpu, True) == "flex_attention"
    with pytest.raises(ConfigError, match="sinks"):
        loading.choose_attention("sdpa", gpu, for_training=False)


def test_a_checkpoint_that_lacks_a_tensor_is_refused_not_filled_with_random_numbers(
    folder, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    name = "model.layers.1.mlp.experts.gate_up_proj_bias"
    shard = broken / index["weight_map"].pop(name)
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard, metadata={"format": "pt"})
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.experts\.gate_up_proj_bias"):
        loading.load_model(broken, device="cpu")


def test_experts_under_a_dense_name_in_disguise_are_refused(random_model, tokenizer, tmp_path):
    # What save_pretrained leaves of a dequantised model: bf16 values named *_blocks, no scales.
    folder = write_checkpoint(
        random_model, random_model.config, tmp_path / "m", tokenizer=tokenizer
    )
    model = loading.load_model(folder, device="cpu")
    model.save_pretrained(tmp_path / "resaved")
    with pytest.raises(DataError, match="lacks"):
        loading.load_model(tmp_path / "resaved", device="cpu")


@pytest.mark.parametrize("name", ["no-such-folder", "/no/such/folder", "a/b/c", "../x", "a b/c"])
def test_a_name_that_can_be_no_model_is_refused(name):
    with pytest.raises(ConfigError, match="neither a folder nor a Hub id"):
        loading.load_model(name, device="cpu")


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        loading.load_model(tmp_path, device="cpu")


def test_an_unknown_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(ConfigError, match="abacus"):
        loading.load_model(tmp_path, device="cpu")


def test_a_hub_that_cannot_be_reached_is_said_in_one_sentence():
    # conftest sets HF_HUB_OFFLINE, so no network is asked
    with pytest.raises(MachineError, match="nobody/nothing"):
        loading.load_model("nobody/nothing", device="cpu")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "int4"),
        ("experts", "melted"),
        ("experts_implementation", "magic"),
        ("device", "abacus"),
    ],
)
def test_wrong_settings_are_named(folder, option, value):
    with pytest.raises(ConfigError, match=value):
        loading.load_model(folder, **{"device": "cpu", option: value})


def test_a_pinned_date_stands_in_every_prompt(folder):
    tokenizer = loading.load_tokenizer(folder, date="2031-02-03")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hour 9"}], tokenize=False, add_generation_prompt=True
    )
    assert "Current date: 2031-02-03\n" in text and tokenizer.padding_side == "left"
    with pytest.raises(ConfigError, match="YYYY-MM-DD"):
        loading.load_tokenizer(folder, date="3.2.2031")


def test_an_adapter_loads_with_its_own_base_and_gives_its_logits(folder, tmp_path):
    base = loading.load_model(folder, device="cpu")
    torch.manual_seed(0)
    model = get_peft_model(base, lora_config(r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "adapter")
    assert loading.base_of(tmp_path / "adapter") == str(folder)
    again = loading.load_with_adapter(None, tmp_path / "adapter", device="cpu")
    ids = torch.arange(30)[None] + 300
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    learning = loading.load_with_adapter(folder, tmp_path / "adapter", trainable=True, device="cpu")
    assert any(parameter.requires_grad for parameter in learning.parameters())


def test_a_folder_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        loading.base_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not name its base"):
        loading.base_of(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensors: {k: v * float("nan") for k, v in tensors.items()}, "holds NaN"),
        (lambda tensors: dict(list(tensors.items())[1:]), "it lacks"),
        (lambda tensors: tensors | {"base_model.model.x.lora_A.weight": torch.ones(1)}, "no place"),
    ],
)
def test_an_adapter_that_peft_would_load_in_part_is_refused(damage, words, folder, tmp_path):
    model = get_peft_model(loading.load_model(folder, device="cpu"), lora_config(r=2))
    model.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file(damage(load_file(weights)), weights)
    with pytest.raises(DataError, match=words):
        loading.load_with_adapter(None, tmp_path, device="cpu")
    weights.unlink()
    with pytest.raises(DataError, match=r"holds no adapter_model\.safetensors"):
        loading.load_with_adapter(None, tmp_path, device="cpu")


def test_a_cut_off_shard_and_a_damaged_tokenizer_are_said_in_a_sentence(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shard = min(broken.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="broken cannot be loaded"):
        loading.load_model(broken, device="cpu")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer that can be loaded"):
        loading.load_tokenizer(broken)
