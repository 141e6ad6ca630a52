"""The model card says where an export comes from and how well it decides, and nothing local."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml

from gptoss_tools.export.card import evaluation_of, model_card
from gptoss_tools.models.snapshot import fingerprint

RECORD = {
    "format": "mxfp4",
    "base": "openai/gpt-oss-20b",
    "ratio": 0.001,
    "kept": 0.53,
    "warnings": ["rounding keeps little"],
    "adapter_sha256": "ab12",
    "training": {"lora_r": 4, "data_sha256": "cd34", "action_pattern": "a|b"},
    "tensors": [{"name": "model.layers.0.self_attn.q_proj.weight"}],
}
EVALUATION = {
    "n_rows": 144,
    "n_episodes": 12,
    "data_sha256": "ef56",
    "regret": {"mean": 0.1234567, "ci95": [0.1, 0.15], "base": 1.5},
    "top1": 0.81,
    "invalid": {"total": 0.0125},
    "reward": {"mean": 0.25, "ci95": [None, None], "base": None},
}


def metadata(card: str) -> dict:
    """The YAML between the first two lines of dashes, which is what the Hub reads."""
    return yaml.safe_load(card.split("---")[1])


def test_the_card_names_base_settings_and_rounding():
    card = model_card("me/it", RECORD)
    for part in ("| lora_r | 4 |", "cd34", "a\\|b", "53.0%", "rounding keeps little", "ab12"):
        assert part in card
    assert "base's own MXFP4 bytes" in card and "## Evaluation" not in card
    assert metadata(card)["base_model"] == "openai/gpt-oss-20b"
    assert "base_model" not in metadata(model_card("me/it", {"base": "tiny-0123"}))  # not on Hub


@pytest.mark.parametrize(
    ("form", "library", "relation", "use"),
    [
        ("mxfp4", "transformers", "finetune", 'from_pretrained("me/it", dtype="auto")'),
        ("bf16", "transformers", "finetune", 'from_pretrained("me/it", dtype="auto")'),
        ("gguf", "gguf", "finetune", "hf download me/it"),
        ("adapter", "peft", "adapter", 'PeftModel.from_pretrained(model, "me/it")'),
    ],
)
def test_each_format_says_how_it_is_used(form, library, relation, use):
    card = model_card("me/it", RECORD | {"format": form})
    assert metadata(card)["library_name"] == library
    assert metadata(card)["base_model_relation"] == relation
    assert use in card


def test_requantised_experts_are_not_called_untouched():
    tensors = [{"name": "model.layers.0.mlp.experts.down_proj"}]
    card = model_card("me/it", RECORD | {"tensors": tensors})
    assert "own MXFP4 bytes" not in card and "rounded to MXFP4 again" in card


def test_the_card_holds_the_held_out_figures():
    card = model_card("me/it", RECORD, EVALUATION)
    assert "On 144 held-out decisions in 12 episodes" in card and "ef56" in card
    for row in (
        "| regret (mean) | 0.1235 [0.1, 0.15] |",
        "| regret of the base | 1.5 |",
        "| best action chosen | 81.0% |",
        "| invalid answers | 1.2% |",
        "| reward (mean) | 0.25 |",
    ):
        assert row in card
    assert "reward of the base" not in card  # null: there was no base to compare with
    bare = model_card("me/it", RECORD, EVALUATION | {"reward": None})
    assert "reward (mean)" not in bare


def test_a_policy_trained_for_rewards_is_called_one():
    record = RECORD | {"training": {"reward": ["format", "exact"], "reward_weights": [0.5, 2]}}
    found = EVALUATION | {"regret": None, "top1": None}
    found["rewards"] = {"format": {"mean": -0.5, "ci95": [-1, 0]}, "exact": {"mean": 0.25}}
    card = model_card("me/it", record, found)
    assert "trained with GRPO for the rewards format, exact, merged" in card
    assert "On 144 held-out prompts" in card and "egret" not in card
    for row in ("| reward (mean) | 0.25 |", "| format | -0.5 [-1, 0] |", "| exact | 0.25 |"):
        assert row in card
    plain = model_card("me/it", RECORD | {"training": {"reward": ["decision"]}})
    assert "trained with GRPO on a table of decisions" in plain


@pytest.fixture
def measured(tmp_path):
    """(run, adapter, base): an evaluation of this adapter on this base."""
    base, run = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    (base / "config.json").write_text("{}")
    adapter = run / "adapter"
    (run / "evaluation").mkdir(parents=True)
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    policy = hashlib.sha256(f"{fingerprint(base)}".encode() + b"weights").hexdigest()
    record = EVALUATION | {"policy_sha256": policy}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    return run, adapter, str(base)


def test_an_evaluation_of_these_weights_is_found(measured):
    assert evaluation_of(*measured)["n_rows"] == 144


def test_an_evaluation_of_other_weights_is_left_out_aloud(measured):
    run, adapter, base = measured
    heard = []
    assert evaluation_of(run, adapter, "openai/gpt-oss-20b", heard.append) is None
    (adapter / "adapter_model.safetensors").write_bytes(b"trained on")
    assert evaluation_of(run, adapter, base, heard.append) is None
    assert len(heard) == 2 and all("is of other weights" in text for text in heard)
    (run / "evaluation" / "evaluation.json").write_text("{broken")
    assert evaluation_of(run, adapter, base, heard.append) is None
    assert "cannot be read" in heard[2]


def test_without_an_evaluation_nothing_is_said(measured):
    run, adapter, base = measured
    (run / "evaluation" / "evaluation.json").unlink()
    heard = []
    assert evaluation_of(run, adapter, base, heard.append) is None and not heard
