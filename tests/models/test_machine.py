"""Memory from shapes: the published sizes, the tiny model's own files, and refusals in numbers."""

import pytest
import torch
from transformers import GptOssConfig

from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.models.layout import checkpoint_tensors
from gptoss_tools.models.machine import (
    branch_scores,
    eager_scores,
    estimate_memory,
    packed_support,
    published_config,
    require_memory,
    resolve_device,
)

TWENTY = GptOssConfig(num_hidden_layers=24, num_local_experts=32)


def test_the_published_20b_checkpoint_is_counted_to_the_byte():
    estimate = estimate_memory(TWENTY)
    assert estimate.packed == 13_761_264_768  # total_size of openai/gpt-oss-20b's index
    # 19,110,297,600 expert weights: 24 * 32 * (2880 * 5760 + 2880 * 2880); 20.9 billion in all
    assert estimate.parameters == 20_914_757_184
    assert estimate.bfloat16 == 2 * 20_914_757_184


def test_the_published_models_are_known_without_the_hub():
    twenty, large = (published_config(f"openai/gpt-oss-{size}") for size in ("20b", "120b"))
    assert twenty and twenty.to_dict() == TWENTY.to_dict()
    assert large and large.to_dict() == GptOssConfig().to_dict()
    assert published_config("tiny") is None


def test_the_120b_model_has_its_117_billion_parameters():
    assert round(estimate_memory(GptOssConfig()).parameters / 1e9) == 117


def test_a_written_model_has_the_estimated_size(random_model):
    estimate = estimate_memory(random_model.config)
    assert estimate.parameters == sum(p.numel() for p in random_model.parameters())
    tensors = checkpoint_tensors(random_model.state_dict())
    assert estimate.packed == sum(tensor.nbytes for tensor in tensors.values())


def test_training_needs_more_with_longer_prompts_and_larger_adapters():
    base = estimate_memory(TWENTY)
    # attention LoRA of rank 16 on 20b: 24 * 16 * (2 * (2880 + 4096) + 2 * (2880 + 512)) = 7,962,624
    # parameters; rank 4 a quarter: 16 bytes for each of the difference
    more = estimate_memory(TWENTY, lora_r=16).training - base.training
    assert more == 16 * (7_962_624 - 7_962_624 // 4)
    assert estimate_memory(TWENTY, tokens=10_000).training > base.training > base.bfloat16


def test_a_model_that_cannot_fit_is_refused_in_numbers(monkeypatch):
    monkeypatch.setattr("gptoss_tools.models.machine.available_bytes", lambda device: 24 * 10**9)
    cpu = torch.device("cpu")
    with pytest.raises(MachineError, match=r"41\.8 GB on cpu, which has 24\.0 GB"):
        require_memory(TWENTY, cpu, torch.bfloat16)
    with pytest.raises(MachineError, match="training"):
        require_memory(TWENTY, cpu, torch.bfloat16, for_training=True)
    require_memory(TWENTY, cpu, torch.bfloat16, packed=True)
    require_memory(TWENTY, cpu, torch.bfloat16, packed=True, for_training=True)


def test_devices_are_named_or_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="abacus"):
        resolve_device("abacus")
    with pytest.raises(MachineError, match="cuda:99"):
        resolve_device("cuda:99")


def test_packed_experts_take_the_file_s_bytes_and_one_layer_s_unpacked_ones_to_train():
    for width, rest in ((2, 0), (4, 2)):
        need = estimate_memory(TWENTY, weight_bytes=width)
        # all but the 19,110,297,600 expert weights is held in the type computed in
        plain = 20_914_757_184 - 19_110_297_600
        assert need.packed_loaded == need.packed + rest * plain
        learning = need.training - width * 20_914_757_184
        # one layer: 32 * (2880 * 5760 + 2880 * 2880) weights
        assert need.packed_training == need.packed_loaded + width * 796_262_400 + learning


def test_transformers_own_kernels_for_packed_experts_need_a_gpu():
    assert packed_support(torch.device("cpu")) == "it needs a CUDA GPU"


def test_a_budget_of_tokens_shrinks_what_is_recomputed_but_not_what_is_kept():
    whole = estimate_memory(TWENTY, tokens=20_000)
    cut = estimate_memory(TWENTY, tokens=20_000, at_once=8_000)
    # 12,000 tokens fewer at once, 90 numbers of 2880 hidden units each, half of 2 bytes
    assert whole.training - cut.training == 12_000 * 90 * 2880
    assert estimate_memory(TWENTY, tokens=8_000).training < cut.training


def test_scores_along_branches_are_those_of_the_prompt_and_of_what_completions_see():
    # (1000^2 / 2 + 8 * 200 * 1200) scores of 64 heads, twice, 2 bytes, for 4 prompts
    need = branch_scores(TWENTY, prompts=4, group=8, prompt=1000, completion=200)
    assert need == 2 * 4 * 64 * 2_420_000 * 2
    assert need < eager_scores(TWENTY, rows=32, length=1200) / 4


def test_eager_scores_of_the_20b_at_the_seeds_lengths():
    # 2 (scores, softmax) * 16 rows * 64 heads * 5000^2 * 2 bytes
    assert eager_scores(TWENTY, rows=16, length=5000) == 2 * 16 * 64 * 25_000_000 * 2
