"""A written checkpoint has the published one's layout and gives the model's logits."""

import copy
import json
import struct

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Mxfp4Config

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import DataError, RunFolderError
from gptoss_tools.models.layout import INDEX, checkpoint_tensors, shard_name, write_checkpoint


@pytest.fixture(scope="module")
def folder(random_model, tokenizer, tmp_path_factory):
    target = tmp_path_factory.mktemp("layout") / "model"
    return write_checkpoint(random_model, random_model.config, target, tokenizer=tokenizer)


def as_saved(model):
    """The same model with the values its checkpoint can hold, in float32."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if mxfp4.is_packed(name):
                parameter.copy_(mxfp4.round_parameter(parameter))
            else:
                parameter.copy_(parameter.to(torch.bfloat16).float())
    return model


def test_stock_transformers_gives_exactly_the_logits_of_the_rounded_model(folder, random_model):
    loaded, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=Mxfp4Config(dequantize=True),
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(200).reshape(2, 100) % 400
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, as_saved(random_model)(ids).logits)
        assert not torch.equal(loaded(ids).logits, random_model(ids).logits)


def test_shards_are_numbered_from_zero_and_the_index_tells_where_each_tensor_lies(folder):
    index = json.loads((folder / INDEX).read_text())
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert shards == [shard_name(n, 3) for n in range(3)]
    assert shards[0] == "model-00000-of-00002.safetensors"
    found, size = {}, 0
    for shard in shards:
        with safe_open(folder / shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 - not a dict
                found[name] = shard
                size += file.get_tensor(name).nbytes
    assert found == index["weight_map"] and size == index["metadata"]["total_size"]


def test_tensors_have_the_published_names_shapes_and_types(folder):
    # hidden 64, 2 blocks of 32; gate and up interleaved: 2 * 64 rows out; 4 experts
    expected = {
        "mlp.experts.gate_up_proj_blocks": ("U8", [4, 128, 2, 16]),
        "mlp.experts.gate_up_proj_scales": ("U8", [4, 128, 2]),
        "mlp.experts.gate_up_proj_bias": ("BF16", [4, 128]),
        "mlp.experts.down_proj_blocks": ("U8", [4, 64, 2, 16]),
        "mlp.experts.down_proj_scales": ("U8", [4, 64, 2]),
        "mlp.experts.down_proj_bias": ("BF16", [4, 64]),
        "mlp.router.weight": ("BF16", [4, 64]),
        "self_attn.q_proj.weight": ("BF16", [128, 64]),
        "self_attn.k_proj.bias": ("BF16", [64]),
        "self_attn.sinks": ("BF16", [4]),
        "input_layernorm.weight": ("BF16", [64]),
    }
    headers = {}
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        headers |= json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    for name, (dtype, shape) in expected.items():
        entry = headers[f"model.layers.1.{name}"]
        assert (entry["dtype"], entry["shape"]) == (dtype, shape), name
    assert not any(name.endswith("gate_up_proj") for name in headers)


def test_the_config_speaks_the_published_vocabulary(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 150000 and "rope_parameters" not in config
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert config["experts_per_token"] == config["num_experts_per_tok"] == 2
    assert config["initial_context_length"] == 4096 and config["router_aux_loss_coef"] == 0.9
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["quantization_config"] == {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    }


def test_three_tokens_end_a_generation_and_the_tokenizer_survives(folder, tokenizer):
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    names = tokenizer.convert_ids_to_tokens(ends)
    assert names == ["<|return|>", "<|endoftext|>", "<|call|>"]
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (loaded.eos_token, loaded.pad_token) == ("<|return|>", "<|endoftext|>")
    assert loaded.padding_side == "left" and "strftime_now" in loaded.chat_template
    assert loaded("Hour 09 [3]").input_ids == tokenizer("Hour 09 [3]").input_ids


def test_a_used_folder_is_left_alone(folder, random_model, tokenizer):
    before = (folder / INDEX).read_bytes()
    with pytest.raises(RunFolderError, match="not empty"):
        write_checkpoint(random_model, random_model.config, folder, tokenizer=tokenizer)
    assert (folder / INDEX).read_bytes() == before


def test_a_dimension_that_is_no_multiple_of_32_is_named():
    name = "model.layers.0.mlp.experts.down_proj"
    with pytest.raises(DataError, match=r"down_proj has 48 inputs"):
        checkpoint_tensors({name: torch.zeros(2, 48, 64)})
