"""Exact actions in a trainer: what is written down, how it is scored, resumed and logged."""

from __future__ import annotations

import csv
import math
import re
from typing import Any

import datasets
import grpo_lab as lab
import pytest
import run_lab
import torch
from test_exact_actions import FINAL, SAID, THOUGHT, drawn, furnish

from gptoss_tools.chat.actions import compile_pattern
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.models import mixlora
from gptoss_tools.training import answer_tree
from gptoss_tools.training.answer_tree import Drawn, Strip
from gptoss_tools.training.written_answers import (
    answer_begins,
    first_unknown,
    rewards_of,
    written_answers,
)

LOSSES = ["dr_grpo", "dapo", "grpo", "bnpo", "cispo"]
TOKENIZER = lab.byte_tokenizer()


def texts(pattern: str | None, count: int, names: tuple[str, ...] = ()) -> dict[Any, int]:
    """What is written down, and for which action."""
    written = written_answers(TOKENIZER, compile_pattern(pattern), count, names)
    return {TOKENIZER.decode(ids): action for action, ids in written}


def test_every_action_is_written_with_each_end_a_message_can_have():
    ends = ("<|return|>", "<|call|>", "<|endoftext|>", "<|end|>")
    assert texts(None, 2) == {f"[{k}]{end}": k for k in range(2) for end in ends}
    names = texts(None, 2, ("heat pump", "off"))
    assert {text.partition("<")[0] for text in names} == {
        "[heat pump]",
        "heat pump",
        "[off]",
        "off",
    }
    assert names["off<|return|>"] == names["[off]<|call|>"] == 1
    assert set(texts(r"Level: ([0-9]+)\.", 11)) >= {"Level: 10.<|return|>", "Level: 0.<|end|>"}
    assert set(texts("([0-9]+)", 1)) == {f"0{end}" for end in ends}


def test_a_pattern_that_reads_nothing_we_can_write_is_refused():
    with pytest.raises(ConfigError, match="can write no answer"):
        texts("(?:a|b)([0-9]+)(?:c|d)", 2)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        (FINAL + "[0]<|return|>", FINAL),
        (THOUGHT.format("[3]") + "[0]<|end|>", THOUGHT.format("[3]")),
        (
            "<|channel|>final <|constrain|>json<|message|>[0]",
            "<|channel|>final <|constrain|>json<|message|>",
        ),
        (FINAL + "[0]<|end|><|start|>assistant" + FINAL + "[1]<|return|>", FINAL),
        (FINAL, FINAL),
        ("<|channel|>analysis<|message|>" + FINAL + "[0]<|return|>", None),  # a thought about it
        ("<|channel|>analysis<|message|>hm<|return|>", None),
        ("<|channel|>final", None),
        ("[0]<|return|>", None),
    ],
)
def test_an_answer_begins_where_the_first_final_message_opens(text, before):
    found = answer_begins(TOKENIZER(text=text)["input_ids"], TOKENIZER)
    assert found == (None if before is None else len(TOKENIZER(text=before)["input_ids"]))


def test_equal_beginnings_of_answers_are_one_and_nobody_sees_a_neighbour():
    #               p1 p2 | h1 h2 | b1 b2            [ = 7, 0 = 8, 1 = 9, ] = 5, stop = 6
    strip = Strip.of([1, 2], [Drawn(0, [3, 4, 7, 8], 2, [[7, 8, 5, 6], [7, 9, 5, 6]])])
    #                  p1  | p2 h1 | h2 7 | h2 7  8  5  7  9  5
    assert strip.ids == [1, 2, 3, 4, 7, 4, 7, 8, 5, 7, 9, 5]
    assert strip.labels == [-100, 3, 4, 7, 8, 7, 8, 5, 6, 9, 5, 6]
    assert strip.positions == [0, 1, 2, 3, 4, 3, 4, 5, 6, 4, 5, 6]
    assert strip.paths == {(0, 0): [5, 6, 7, 8], (0, 1): [5, 9, 10, 11]}
    seen = strip.visible(12)
    assert seen[8].nonzero().flatten().tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert seen[11].nonzero().flatten().tolist() == [0, 1, 2, 5, 9, 10, 11]
    assert seen[4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def exact_batch(run, said) -> dict:
    """A batch of whole groups with advantages and answers, from a policy that is a real model."""
    said = [*said, *said[: len(said) % 2]]
    batch = drawn(run, said)
    run.model.train()
    return batch | run.credit(run.model, batch, [run.train_dataset[0]] * len(said))


@pytest.mark.parametrize("share", [False, True])
def test_drawn_tokens_and_answers_get_the_probabilities_they_have_alone(tmp_path, share):
    run, _, said = furnish(tmp_path, SAID)
    run.share_prompts = share
    said = said[:8]
    batch = exact_batch(run, said)
    with torch.no_grad():
        scores = run._score(run.model, batch)
        prompt = batch["prompt_ids"][0].tolist()

        def alone(ids: list[int]) -> torch.Tensor:
            row, place = torch.tensor([prompt + ids]), len(prompt) - 1
            logits = run.model(input_ids=row, logits_to_keep=0).logits[0, place:-1]
            return logits.log_softmax(-1)[range(len(ids)), ids]

        for row, ids in enumerate(said):
            torch.testing.assert_close(
                scores.logps[row, : len(ids)], alone(ids), rtol=1e-4, atol=1e-5
            )
            cut = int(batch["decided"][row])
            for place in (0, 3, 43) if cut < len(ids) else ():
                answer = [t for t in batch["answers"][row, place].tolist() if t >= 0]
                if answer:
                    expected = alone(ids[:cut] + answer)[cut:].sum().exp()
                    torch.testing.assert_close(
                        scores.answers[row, place], expected, rtol=1e-3, atol=0
                    )
    lengths = [len(prompt) + len(ids) - 1 for ids in said]
    assert share or int(scores.drawn.sum()) == sum(lengths)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_an_answer_weighs_in_the_loss_what_a_token_of_its_row_does(tmp_path, loss_type):
    run, _, said = furnish(tmp_path, SAID, loss_type=loss_type, gradient_accumulation_steps=3)
    run.current_gradient_accumulation_steps = 2
    batch = exact_batch(run, said)
    batch["advantages"] = torch.linspace(0.1, 1.0, batch["completion_ids"].numel())
    batch["advantages"] = batch["advantages"].view(batch["completion_ids"].shape)
    logps = torch.full(batch["completion_ids"].shape, -1.0, requires_grad=True)
    chances = torch.full(batch["gains"].shape, 0.01, requires_grad=True)
    scores = answer_tree.Scores(logps, torch.zeros_like(logps), chances, torch.ones(1))
    run._score = lambda model, batch, size=None: scores
    by_token, by_answer = torch.autograd.grad(run._compute_loss(run.model, batch), (logps, chances))
    # of the loss -w A logp per token, and -w (r - worst) p per answer
    weights = -by_token[:, :1] / batch["advantages"][:, :1]
    assert (weights > 0).all()
    torch.testing.assert_close(by_answer, -weights * batch["gains"])


def speak(run):
    """Let a trainer draw from SAID, by torch's generator, instead of from its model."""
    said = [TOKENIZER(text=text)["input_ids"] for text in SAID]

    def draw(prompt_ids, *more):
        picks = torch.randint(len(said), (len(prompt_ids),)).tolist()
        return [said[pick][: run.max_completion_length] for pick in picks], None

    run._generate_single_turn = draw
    return run


def run_of(folder, **changes):
    values = {"reward": "decision", "invalid_reward": "worst", "n_actions": 11, "max_steps": 4}
    values |= {"num_generations": 4, "max_completion_length": 33, "save_steps": 2}
    return speak(lab.trainer(folder, action_gradient="exact", **(values | changes)))


def same_bits(one, other) -> bool:
    a, b = lab.weights(one), lab.weights(other)
    return all(torch.equal(a[name], b[name]) for name in a)


def test_two_and_two_steps_end_with_the_bits_of_four_and_records_know_their_expected_reward(
    tmp_path,
):
    records: list[dict] = []
    cut = {"steps_per_generation": 3, "num_iterations": 2}  # in the middle of a generation
    whole = run_of(tmp_path / "whole", on_completions=records.extend, **cut)
    whole.train()
    again = run_of(tmp_path / "again", **cut)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "step-000002"))
    assert same_bits(whole, again)
    assert whole.odd_answers == again.odd_answers != (0.0, 0.0)
    first = whole.state.log_history[0]
    for name in ("value", "valid_mass", "reached", "unlisted"):
        assert math.isfinite(first[f"exact/{name}"])
    part = records[:12]
    mean = sum(record["expected_reward"] for record in part) / len(part)
    assert first["exact/value"] == pytest.approx(mean, rel=1e-5)
    assert first["reward"] == pytest.approx(sum(r["reward"] for r in part) / len(part), rel=1e-5)


def test_shared_prompts_and_gradient_checkpointing_change_nothing_but_rounding(tmp_path):
    logs = []
    for changes in ({}, {"share_prompts": True}, {"gradient_checkpointing": True}):
        run = run_of(tmp_path / str(len(logs)), max_steps=1, prompts_per_step=2, **changes)
        run.train()
        logs.append(run.state.log_history[0])
    first, *others = logs
    assert first["grad_norm"] > 0
    for name in ("loss", "grad_norm", "exact/value", "entropy"):
        for other in others:
            assert other[name] == pytest.approx(first[name], rel=1e-3, abs=1e-7), name


def test_a_mixlora_counts_the_drawn_tokens_for_its_balance(tmp_path):
    run, _, said = furnish(tmp_path, SAID)
    model: Any = lab.tiny_model(lora=False)
    handle = mixlora.attach(model, mixlora.MixLoraConfig(num_experts=3, r=2, lora_dropout=0.0))
    other: Any = lab.DecisionTrainer(
        model=model,
        args=run.args,
        train_dataset=run.train_dataset,
        tokenizer=run.processing_class,
        reward=run.reward,
        action_gradient="exact",
    )
    other.current_gradient_accumulation_steps = 1
    batch = exact_batch(other, said)
    other._compute_loss(model, batch).backward()
    assert handle.recorder.last is not None and handle.recorder.last.counted is not None
    tokens = batch["prompt_mask"].sum() + batch["completion_mask"].sum()
    assert handle.recorder.last.counted.sum() == tokens - len(batch["prompt_ids"])
    (logged,) = other._metrics["train"]["balance_loss"]
    assert 0.0015 < logged < 0.006  # 0.001 times 2 picks in perfect balance, 3 at worst


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"reward": "lab_hash"}, "reward decision alone"),
        ({"invalid_reward": "mask"}, "invalid_reward"),
        ({"scale_rewards": "group"}, "scale_rewards none"),
        ({"attn_implementation": "sdpa"}, "attn_implementation"),
        ({"zero_signal": "skip"}, "zero_signal keep"),
    ],
)
def test_settings_it_cannot_serve_are_refused(other, match):
    values = {"reward": "decision", "invalid_reward": "worst", "action_gradient": "exact"}
    with pytest.raises(ValueError, match=re.escape("action_gradient exact needs") + ".*" + match):
        lab.settings(**(values | other))


def test_sequence_level_ratios_and_unknown_rewards_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="importance_sampling_level"):
        run_of(tmp_path, trainer={"importance_sampling_level": "sequence"})
    columns = {"row": [0, 1, 2], "n_actions": [1, 2, 2], "reward_action_0": [0.0, 1.0, 1.0]}
    table = datasets.Dataset.from_dict({**columns, "reward_action_1": [None, 1.0, None]})
    with pytest.raises(DataError, match="row 3 has no reward for action 1"):
        rewards_of(first_unknown(table))
    assert rewards_of(first_unknown(table.select([0, 1]))) == [0.0]


def test_completions_csv_has_a_column_for_the_expected_reward(tmp_path):
    folder = run_lab.furnish(tmp_path)
    wanted = {"reward": "decision", "invalid_reward": "worst", "max_steps": 1, "save_steps": 1}
    run_lab.run(folder, action_gradient="exact", **wanted)
    with (folder / "run" / "completions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # noise never comes to an answer, and then what is expected is what was earned
    assert len(rows) == 8
    assert all(row["expected_reward"] == row["reward"] == "0.0" for row in rows)
