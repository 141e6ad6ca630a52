"""The pieces of a session on their own."""

from __future__ import annotations

import pytest
import run_lab
from transformers import AutoTokenizer

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.notebook import create_reward_functions, format_prompt, prepare_datasets

VALUES = {"reward_action_0": [0.25] * 4, "reward_action_1": [0.75] * 4}


def test_a_prompt_is_what_the_models_own_template_writes(tiny, config):
    named = config(model=str(tiny), date="2026-01-02")
    template = AutoTokenizer.from_pretrained(tiny)
    messages = [{"role": "user", "content": "Rubric:\nBe kind.\n\nHow?"}]
    theirs = template.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, reasoning_effort="medium"
    )
    ours = format_prompt("How?", named, rubric="Be kind.")
    today = theirs.split("Current date: ")[1][:10]
    assert ours == theirs.replace(today, "2026-01-02")
    assert "Rubric" not in format_prompt("How?", named)


def test_datasets_are_what_a_run_reads_with_the_held_out_rows_beside(lab, config, tmp_path):
    train, nothing = prepare_datasets(config())
    assert train.num_rows == 5 and nothing is None
    assert train[0]["prompt"].endswith("<|start|>assistant") and train[0]["reward_action_1"] == 0.75
    run_lab.write_table(tmp_path / "other.csv", rows=2)
    _, test = prepare_datasets(config(eval_data=[str(tmp_path / "other.csv")]))
    assert (
        test is not None and test["q_action_0"][:] == [0.0, 1.0] and test["n_actions"][:] == [2, 2]
    )


def test_held_out_rows_that_were_asked_for_must_be_there(config):
    with pytest.raises(DataError, match=r"mine\.csv"):
        prepare_datasets(config(eval_data=["mine.csv"]))


def test_a_reward_takes_the_originals_arguments_and_gives_what_training_gives(config):
    """Of two actions worth 0.25 and 0.75; an answer that is none counts as 0, the lesser of 0 and
    the worst."""
    [reward] = create_reward_functions(config(reward="decision", invalid_reward="worst"))
    whole = "<|channel|>analysis<|message|>[1]<|end|><|start|>assistant<|channel|>final<|message|>"
    texts = ["[0]", "[1]", "neither", whole + "[0]<|return|>"]
    assert reward(["q"] * 4, texts, **VALUES) == [0.25, 0.75, 0.0, 0.25]


def test_there_is_a_function_for_each_reward_unweighted(config):
    chosen = config(reward=["format", "exact"], reward_weights=[0.5, 3.0])
    structure, exact = create_reward_functions(chosen)
    assert (structure.__name__, exact.__name__) == ("format", "exact")
    texts = ["<reasoning>a</reasoning><answer>7</answer>", "<answer>8</answer>", "9"]
    assert structure(["q"] * 3, texts) == [2.0, 0.5, -1.0]
    assert exact(["q"] * 3, texts, answer=["7", "7", "9"]) == [1.0, 0.0, 1.0]


def test_what_is_no_reward_is_refused(config):
    with pytest.raises(ConfigError, match="nonsense"):
        create_reward_functions(config(reward="nonsense"))
