"""A completion ends where its action is complete, and the end is not learned."""

from __future__ import annotations

import itertools
from dataclasses import fields

import grpo_lab as lab
import pytest
import torch
from pydantic import ValidationError
from trl.trainer.grpo_config import GRPOConfig

from gptoss_tools.chat.families import chat_of
from gptoss_tools.training.stopping import EndAfterAction, closing_tokens

ROW = {"n_actions": 3, "actions": None}
NAMED = {"n_actions": 2, "actions": ["wait", "fill up"]}
PROMPT = 4


@pytest.fixture(scope="module")
def tokenizer():
    return lab.byte_tokenizer()


def after(tokenizer, text, row=ROW):
    """What may follow a completion: None for anything, else the tokens left."""
    chat = chat_of(tokenizer)
    ids = torch.tensor([[0] * PROMPT + tokenizer(text)["input_ids"]])
    ending = EndAfterAction(chat, [row], PROMPT, closing_tokens(tokenizer))
    scores = ending(ids, torch.zeros(1, len(tokenizer)))
    left = torch.isfinite(scores[0]).nonzero().flatten().tolist()
    assert ending.ended == [len(left) == 1]
    return None if len(left) == len(tokenizer) else tokenizer.convert_ids_to_tokens(left)


FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    "text", [f"{FINAL}[2]", f"<|channel|>analysis<|message|>x<|end|><|start|>assistant{FINAL} [0]"]
)
def test_only_the_end_follows_a_valid_action(tokenizer, text):
    assert after(tokenizer, text) == ["<|return|>"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{FINAL}[2",
        f"{FINAL}[3]",  # there are three actions
        f"{FINAL}so [2]",
        "<|channel|>analysis<|message|>[2]",  # a thought
        f"{FINAL}[2]<|return|><|endoftext|>",
        "[2]",
    ],
)
def test_anything_follows_anything_else(tokenizer, text):
    assert after(tokenizer, text) is None


def test_names_in_brackets_are_actions_too(tokenizer):
    assert after(tokenizer, f"{FINAL}[fill up]", NAMED) == ["<|return|>"]
    assert after(tokenizer, f"{FINAL}[drain]", NAMED) is None
    assert after(tokenizer, f"{FINAL}[1]", NAMED) is None


def test_closing_tokens_are_those_that_end_in_a_bracket(tokenizer):
    assert tokenizer.convert_ids_to_tokens(closing_tokens(tokenizer).tolist()) == ["]"]


def speaking(run, text):
    """Let the model say `text` whatever it is asked, and its first token again ever after."""
    said = run.processing_class(text)["input_ids"]
    steps = itertools.chain(said, itertools.repeat(said[0]))

    def forced(module, args, output):
        output.logits = torch.full_like(output.logits, -1e4)
        output.logits[..., next(steps)] = 0

    return run.accelerator.unwrap_model(run.model).get_base_model().register_forward_hook(forced)


def test_training_reads_the_action_and_leaves_our_end_out_of_the_loss(tmp_path):
    run = lab.trainer(
        tmp_path,
        reward="decision",
        max_completion_length=20,
        num_generations=2,
        prompts_per_step=1,
        stop_at_action=True,
    )
    text = f"{FINAL}[2]"
    hook = speaking(run, text)
    run.model.train()
    rows = [run.train_dataset[i] for i in run._get_train_sampler().generation_batch(0).tolist()]
    batch = run._prepare_inputs(rows)
    hook.remove()
    length = len(run.processing_class(text)["input_ids"])
    # the end stands there, for whoever reads the answer, and no loss sees it
    assert batch["completion_ids"][:, length].tolist() == [run.reward.chat.tokens.return_] * 2
    assert batch["completion_mask"].tolist() == [[1] * length + [0]] * 2
    assert int(batch["num_items_in_batch"]) == 2 * length
    assert [record["action"] for record in run.reward.records] == [2, 2]
    assert run._metrics["train"]["completions/clipped_ratio"] == [0.0]
    assert "generate" not in vars(run.accelerator.unwrap_model(run.model))


def test_it_goes_together_with_shared_prompts(tmp_path):
    run = lab.trainer(
        tmp_path, reward="decision", max_steps=1, share_prompts=True, stop_at_action=True
    )
    run.train()
    assert run.state.global_step == 1


def test_what_it_cannot_serve_is_refused():
    for changes in ({"action_pattern": r"<(\d)>"}, {"reward": "format"}):
        with pytest.raises(ValidationError, match="stop_at_action needs"):
            lab.settings(stop_at_action=True, **{"reward": "decision"} | changes)


PAGED = ["use_transformers_continuous_batching", "use_transformers_paged"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("stop_at_action", "use_vllm"),
        *itertools.product(["stop_at_action", "share_prompts"], PAGED),
    ],
)
def test_ways_to_generate_that_pass_it_by_are_refused(name, other):
    values = {"reward": "decision", name: True}
    with pytest.raises(ValidationError, match=f"{name} changes .* {other} in .trainer."):
        lab.settings(**values, trainer={other: True})
    assert lab.settings(**values, trainer={other: False}).trainer == {other: False}


def test_what_is_refused_of_trl_is_an_argument_that_trl_has():
    known = {field.name for field in fields(GRPOConfig)}
    assert known >= {"use_vllm", *PAGED}
