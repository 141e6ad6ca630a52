"""pretrain: which windows come when, what is measured, what a run leaves, what it refuses."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pretrain_lab
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptoss_tools.core.runs import open_run
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.settings import PretrainSettings
from gptoss_tools.training.pretraining_data import Purpose, Tokens, WindowOrder, collate, split
from gptoss_tools.training.pretraining_preparation import prepare
from gptoss_tools.training.pretraining_trainer import PretrainTrainer, make_arguments
from gptoss_tools.training.train import plan


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return pretrain_lab.furnish(tmp_path_factory.mktemp("pretrain"))


def tokens(count: int = 50, block_size: int = 4) -> Tokens:
    return Tokens(np.arange(count, dtype=np.int32), np.arange(9, dtype=np.int32), block_size)


def test_a_corpus_is_parted_by_position_and_each_part_holds_a_window_and_a_token():
    ids = np.arange(50, dtype=np.int32)
    parts = split(ids, 0.1, 4, "a.txt")
    # 0.9 * 50 = 45
    assert (parts.train.tolist(), parts.validation.tolist()) == ([*range(45)], [*range(45, 50)])
    with pytest.raises(DataError, match=r"a\.txt: the validation part has 5 tokens, .* needs 6"):
        split(ids, 0.1, 5, "a.txt")
    with pytest.raises(DataError, match="the training part has 4 tokens"):
        split(ids[:10], 0.6, 4, "a.txt")


def test_windows_are_a_function_of_seed_and_step_and_reach_every_place():
    drawn = tokens().draw(Purpose.TRAIN, 7, 3, 2000)
    assert np.array_equal(drawn, tokens().draw(Purpose.TRAIN, 7, 3, 2000))
    # 50 tokens, windows of 4 and the token after: places 0 to 45
    assert set(drawn) == set(range(46))
    for other in (
        tokens().draw(Purpose.TRAIN, 7, 4, 2000),
        tokens().draw(Purpose.TRAIN, 8, 3, 2000),
        tokens().draw(Purpose.EVAL_TRAIN, 7, 3, 2000),
    ):
        assert not np.array_equal(drawn, other)
    shown = collate(tokens().windows(Purpose.TRAIN, np.array([0, 45])))
    assert shown["input_ids"].tolist() == [[0, 1, 2, 3], [45, 46, 47, 48]]
    assert shown["targets"].tolist() == [[1, 2, 3, 4], [46, 47, 48, 49]]


def order(rows: int = 6, micro_steps: int = 4, done: int = 0) -> WindowOrder:
    return WindowOrder(tokens(), seed=7, rows=rows, micro_steps=micro_steps, done=lambda: done)


def test_the_order_goes_on_where_it_was_and_is_the_same_over_two_processes():
    whole, later = list(order()), list(order(done=2))
    assert len(whole) == len(order()) == 24
    assert later == [0] * 12 + whole[12:]
    batches = list(BatchSampler(order(), 3, drop_last=False))
    shares = [
        list(BatchSamplerShard(BatchSampler(order(), 3, drop_last=False), 2, rank))
        for rank in range(2)
    ]
    assert [b for pair in zip(*shares, strict=True) for b in pair] == batches
    assert [sorted(shares[0][0] + shares[1][0])] == [sorted(whole[:6])]


def trainer(lab: Path, **changes) -> PretrainTrainer:
    settings = pretrain_lab.settings(lab, from_=str(lab / "gpt2"), **changes)
    ready = prepare(settings)
    model = AutoModelForCausalLM.from_pretrained(lab / "gpt2")
    return PretrainTrainer(
        model=model,
        args=make_arguments(ready.settings, str(lab / "unused"), 1),
        tokens=ready.tokens,
        tokenizer=ready.tokenizer,
        settings=ready.settings,
    )


def test_the_loss_is_the_mean_over_all_next_tokens_as_the_model_itself_counts_it(lab):
    own = trainer(lab)
    own.model.eval()
    windows = own.tokens.windows(Purpose.TRAIN, np.array([3, 70]))
    loss = own.loss(own.model, collate(windows))
    # transformers shifts labels itself: of 9 tokens it asks the last 8
    torch.testing.assert_close(loss, own.model(windows, labels=windows).loss)


def test_both_parts_are_measured_with_the_error_of_their_batches(lab):
    own = trainer(lab, eval_batches=3)
    own.model.eval()
    figures = own.measure()
    for part, purpose in (("", Purpose.EVAL_VALIDATION), ("train_", Purpose.EVAL_TRAIN)):
        losses = []
        for batch in range(3):
            starts = own.tokens.draw(purpose, 42, batch, 4)
            shown = collate(own.tokens.windows(purpose, starts))
            logits = own.model(shown["input_ids"]).logits.flatten(0, 1)
            losses.append(cross_entropy(logits, shown["targets"].flatten()).item())
        mean = sum(losses) / 3
        error = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 2 / 3)
        assert figures[f"eval_{part}loss"] == pytest.approx(mean, rel=1e-6)
        assert figures[f"eval_{part}loss_se"] == pytest.approx(error, rel=1e-3)
    assert figures | {"eval_seconds": 0} == own.measure() | {"eval_seconds": 0}


def test_a_run_leaves_a_model_a_sample_an_output_a_log_and_records(lab):
    said = []
    outcome = pretrain_lab.run(lab, "whole", eval_steps=5, save_steps=4, on_notice=said.append)
    records = pretrain_lab.history(outcome.run)
    assert [r["step"] for r in records] == list(range(13))
    assert [r["step"] for r in records if "eval_loss" in r] == [0, 5, 10, 12]
    # 4 windows of 8 tokens a step; 90 % of the text is learned
    learned = int(len((lab / "text.txt").read_text()) * 0.9)
    assert (records[3]["num_tokens"], records[3]["epoch"]) == (96, 96 / learned)
    assert records[-1]["eval_loss"] < records[0]["eval_loss"] - 0.3
    assert {"eval_loss_se", "eval_train_loss", "eval_train_loss_se"} < set(records[0])
    # checkpoints whatever the evaluations
    names = {c.step for c in open_run(outcome.run).checkpoints()}
    assert {4, 8, 12} <= names
    sample = (outcome.run / "sample.txt").read_text()
    output = (outcome.run / "output.txt").read_text()
    assert output.count("HYPERPARAMETERS") == output.count("OUTPUT") == 1
    assert "learning_rate: 0.01\n" in output and "from: None\n" in output
    assert output.endswith(sample)
    (log,) = (outcome.run / "logs").iterdir()
    assert log.name.startswith("training_log_")
    lines = log.read_text().splitlines()
    assert lines[:2] == ["=" * 80, "Training from the beginning"]
    started = next(i for i, line in enumerate(lines) if line.startswith("step 0: train loss"))
    assert lines[started + 1].startswith("step 1: loss")
    (change,) = [line for line in said if "->" in line]
    first, last = records[0]["eval_loss"], records[-1]["eval_loss"]
    assert f"validation loss {first:.4f} -> {last:.4f} ({last - first:+.4f})" in change
    assert (outcome.eval_loss_first, outcome.eval_loss) == (first, last)
    model = AutoModelForCausalLM.from_pretrained(outcome.model)
    tokenizer = AutoTokenizer.from_pretrained(outcome.model)
    assert model.config.model_type == "bigram"
    assert tokenizer.decode(tokenizer("the cat").input_ids) == "the cat"


def test_measuring_more_often_changes_no_bit(lab):
    often = pretrain_lab.run(lab, "often", eval_steps=1, eval_batches=3, max_steps=5)
    seldom = pretrain_lab.run(lab, "seldom", max_steps=5)
    assert pretrain_lab.same_bits(often, seldom)


def test_the_output_file_can_be_left_out_and_a_gpt2_answers_a_question(lab):
    outcome = pretrain_lab.run(
        lab, "gpt2-run", from_=str(lab / "gpt2"), enable_output_to_file=False, max_steps=2
    )
    assert not (outcome.run / "output.txt").exists()
    # capital letters are unknown to its tokenizer, and not shown
    assert (outcome.run / "sample.txt").read_text().startswith(" ")
    named = pretrain_lab.run(lab, "named", sample_prompt="the dog", max_steps=2)
    assert (named.run / "sample.txt").read_text().startswith("the dog")


def test_a_column_of_a_table_and_learned_pairs_train_too(lab):
    rows = [{"n": 1, "body": line} for line in (lab / "text.txt").read_text().splitlines()]
    pd.DataFrame(rows).to_csv(lab / "table.csv", index=False)
    outcome = pretrain_lab.run(
        lab, "table", data=[str(lab / "table.csv")], text_column="body", tokenizer="bpe",
        vocab_size=300, model_type="gpt-oss", max_steps=2,
    )  # fmt: skip
    config = json.loads((outcome.run / "config.json").read_text())
    assert config["data"]["rows"] == 120
    tokenizer = AutoTokenizer.from_pretrained(outcome.model)
    assert (len(tokenizer), tokenizer.bos_token) == (config["vocabulary"], "<|endoftext|>")


def test_a_new_model_can_take_the_tokenizer_of_another(lab):
    ready = prepare(pretrain_lab.settings(lab, tokenizer=str(lab / "gpt2"), model_type="gpt2"))
    assert len(ready.tokenizer) == len(AutoTokenizer.from_pretrained(lab / "gpt2"))


def test_defaults_are_the_scripts(lab):
    new = PretrainSettings(data=["x"]).resolved()
    assert (new.hidden_size, new.num_hidden_layers, new.num_attention_heads) == (256, 4, 4)
    assert (new.dropout, new.block_size, new.windows_per_step) == (0.2, 128, 64)
    assert (new.max_steps, new.learning_rate, new.warmup_steps) == (5000, 3e-4, 0)
    assert (new.eval_steps, new.eval_batches, new.tokenizer) == (500, 50, "character")
    assert (new.max_new_tokens, new.temperature, new.top_k) == (300, 0.7, 50)
    known = PretrainSettings(data=["x"], from_="gpt2").resolved()
    assert (known.windows_per_step, known.learning_rate, known.eval_batches) == (16, 2e-5, 20)
    # 2 % of 5000 steps, at least 50
    assert known.warmup_steps == 100
    assert (
        known.model_copy(update={"warmup_steps": None, "max_steps": 9}).resolved().warmup_steps
        == 50
    )


def test_a_plan_counts_and_writes_nothing(lab, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = plan(pretrain_lab.settings(lab, output_dir=None, gradient_accumulation_steps=3))
    characters = len((lab / "text.txt").read_text())
    assert (found["run"], found["model"]) == ("runs/pretrain-001", "new bigram")
    assert (found["characters"], found["texts"]) == (characters, 1)
    assert found["tokens_to_learn"] + found["tokens_to_measure"] == characters
    # 4 windows of 8 tokens, 3 times
    assert (found["steps"], found["tokens_per_step"], found["checkpoints"]) == (12, 96, 2)
    assert found["parameters"] > 1000 and found["memory_bytes"] > 16 * found["parameters"]
    assert plan(pretrain_lab.settings(lab, from_="tiny", output_dir=None))["parameters"] is None
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": []}, DataError, "no text was named"),
        ({"block_size": 2000}, DataError, "part has"),
        ({"from_": "gpt2", "block_size": 33}, ConfigError, "block_size is 33, and .* reads 32"),
        ({"from_": "gpt2", "tokenizer": "bpe"}, ValueError, "keeps its tokenizer"),
        ({"tokenizer": "model"}, ValueError, "needs a model"),
        ({"vocab_size": 300}, ValueError, "new bpe tokenizer"),
        ({"adapter": "mixlora"}, ValueError, "model that has learned"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(lab, changes, error, words):
    if "from_" in changes:
        changes = changes | {"from_": str(lab / "gpt2")}
    with pytest.raises(error, match=words):
        pretrain_lab.run(lab, "refused", **changes)
    assert not (lab / "refused").exists()


def test_windows_that_do_not_divide_over_the_processes_are_refused(lab):
    with pytest.raises(ConfigError, match="windows_per_step 4 does not divide over 3"):
        make_arguments(pretrain_lab.settings(lab).resolved(), "unused", 3)
