"""The tiny model: what it is taught, that its bytes repeat, and that it speaks Harmony."""

import json
import multiprocessing
import os
import random
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from hypothesis import given
from hypothesis import strategies as st
from tiny_lab import HURRIED

from gptoss_tools.chat.actions import Reason, parse_action
from gptoss_tools.chat.completions import split_text
from gptoss_tools.errors import DataError, MachineError
from gptoss_tools.models import tiny_lessons as lessons
from gptoss_tools.models.loading import load_model, load_tokenizer
from gptoss_tools.models.tiny import build_tiny
from gptoss_tools.models.tiny_cache import shipped_prompts, tiny_path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@given(st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    # a special token's own text is read as that token and comes back as the same text
    assert tokenizer.decode(ids) == text


def test_an_answer_is_three_tokens_of_its_own(tokenizer):
    for digit in "0123456789":
        assert tokenizer.tokenize(f"[{digit}]") == ["[", digit, "]"]
        assert tokenizer.tokenize(f"<|message|>[{digit}]<|return|>")[1:4] == ["[", digit, "]"]


def test_special_tokens_stand_behind_the_learned_ones_in_the_published_order(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["<|startoftext|>", "<|return|>", "<|call|>"])
    # 199998, 200002 and 200012 in the published tokenizer: offsets 0, 4 and 14 of 21
    assert [i - (len(tokenizer) - 21) for i in ids] == [0, 4, 14]


def test_facts_are_words_with_their_values(prompts):
    # prompt 1: hour 8 + 1, load 20 + 3, tank 37, odd so run now
    assert lessons.facts_of(prompts[1]) == [
        "Hour 09",
        "load 23",
        "tank 037",
        "of 300",
        "now: yes",
    ]


def test_facts_are_cut_into_runs_of_like_length_and_constants_left_out():
    values = [(9, "no"), (10, "yes"), (30, "no"), (20, "yes")]
    facts = [[f"load {load}", "of 300", f"now: {now}"] for load, now in values]
    # loads in order 9 10 20 30 -> 0 1 2 3; words in order no no yes yes -> 0 and 2 * 4 / 4 = 2
    assert lessons.classes(facts) == [[0, 0], [1, 2], [3, 0], [2, 2]]


def test_answers_are_dice_and_a_quarter_of_them_think_first(prompts, tokenizer):
    recipe = lessons.Recipe(steps=300, answer_steps=150, batch_size=8, far_every=0)
    course, actions, thoughts = lessons.Lessons(prompts, tokenizer, recipe), Counter(), 0
    for step in range(300):
        for row in course.batch(step):
            text = tokenizer.decode(row.answer)
            decision = parse_action(split_text(text), 4)
            assert decision.reason is Reason.OK, text
            actions[decision.action] += 1
            thoughts += "analysis" in text
            assert len(row.prompt) > row.junk
    # 2400 rows: 600 per action and 600 thoughts, standard deviation sqrt(2400 * 3 / 16) = 21
    assert all(abs(count - 600) < 5 * 21 for count in [*actions.values(), thoughts])


def test_the_usual_draws_are_those_of_a_plain_recipe(prompts, tokenizer):
    recipe = lessons.Recipe(steps=40, answer_steps=0, batch_size=4)
    course, draw = lessons.Lessons(prompts, tokenizer, recipe), random.Random(0)
    whole = tokenizer(prompts).input_ids
    last = tokenizer([lessons.last_message(prompt) for prompt in prompts]).input_ids
    for step in range(40):
        texts = whole if draw.random() < 0.25 else last
        for row in course.batch(step):
            number = draw.randrange(24)
            own, junk = texts[number], 0
            if draw.random() < 0.25:
                junk = draw.randrange(len(own) - 4)
                own = course_junk(draw, whole, len(tokenizer), junk) + own[junk:]
            thought = ""
            if draw.random() < 0.25:
                fact = draw.choice(lessons.facts_of(prompts[number]))
                thought = f"<|channel|>analysis<|message|>{fact}.<|end|><|start|>assistant"
            answer = f"{thought}<|channel|>final<|message|>[{draw.randrange(4)}]<|return|>"
            assert (row.prompt, row.junk) == (own, junk)
            assert tokenizer.decode(row.answer) == answer
            # the probe asks at the opening bracket of [ k ] <|return|>
            assert row.asked == len(row.answer) - 4


def course_junk(draw, whole, vocabulary, length):
    """Junk as the lessons draw it: pieces of prompts and runs of tokens, in this order of draws."""
    tokens = []
    while len(tokens) < length:
        source = draw.choice(whole)
        start = draw.randrange(len(source))
        tokens += source[start : start + draw.randrange(1, 30)]
        below = draw.choice([256, vocabulary - 21])
        tokens += [draw.randrange(below) for _ in range(draw.randrange(60))]
    return tokens[:length]


@pytest.mark.parametrize("answers", [("0", "1", "2", "3"), ("low", "half load", "2")])
def test_every_kind_of_no_action_has_its_reason(answers):
    names = None if answers[0] == "0" else answers
    for thought in ("", "load 23."):
        texts = lessons.no_actions(answers[1], thought, answers)
        decisions = [parse_action(split_text(text), 4, None, names) for text in texts]
        assert [(d.action, str(d.reason)) for d in decisions] == [
            (None, "unparsable"),
            (None, "unparsable"),
            (None, "no_final"),
            (None, "out_of_range"),
        ]


def test_a_share_of_the_answers_is_no_action_and_the_others_are_the_names(prompts, tokenizer):
    answers = ("low", "half load", "full")
    recipe = lessons.Recipe(
        steps=300, answer_steps=0, batch_size=8, answers=answers, invalid_share=0.4
    )
    course, counts = lessons.Lessons(prompts, tokenizer, recipe), Counter()
    for step in range(300):
        for row in course.batch(step):
            text = tokenizer.decode(row.answer)
            decision = parse_action(split_text(text), None, None, answers)
            counts[decision.action if decision.reason is Reason.OK else str(decision.reason)] += 1
            assert tokenizer.decode(row.answer[: row.asked]).endswith("<|message|>")
    # 2400 rows: 0.6 / 3 = 0.2 for every name, 0.4 / 4 = 0.1 for every kind of no action, of which
    # two are unparsable; five standard deviations: 5 * sqrt(2400 * 0.2 * 0.8) = 98
    wanted = {0: 480, 1: 480, 2: 480, "unparsable": 480, "no_final": 240, "out_of_range": 240}
    assert counts.keys() == wanted.keys()
    assert all(abs(counts[key] - number) < 98 for key, number in wanted.items())


def test_the_same_recipe_gives_the_same_bytes_and_leaves_the_random_state(prompts, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    progress = []
    first = build_tiny(
        tmp_path / "a",
        prompts=prompts,
        recipe=HURRIED,
        on_progress=lambda *now: progress.append(now),
    )
    assert torch.equal(torch.rand(3), expected)
    assert [(step, steps) for step, steps, _ in progress] == [(n + 1, 6) for n in range(6)]
    assert files(first) == files(build_tiny(tmp_path / "b", prompts=prompts, recipe=HURRIED))


@pytest.mark.timeout(120)
def test_it_is_built_alone_among_several_processes_and_leaves_no_trace(
    prompts, tmp_path, monkeypatch
):
    alone = files(build_tiny(tmp_path / "alone", prompts=prompts, recipe=HURRIED))
    # as torchrun sets them; the other process waits for the model, so nobody answers
    around = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (around | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}).items():
        monkeypatch.setenv(name, value)
    states = (PartialState, AcceleratorState)
    held = [dict(state._shared_state) for state in states]
    environment, draws, numpy_draws = dict(os.environ), random.getstate(), np.random.get_state()
    assert files(build_tiny(tmp_path / "amid", prompts=prompts, recipe=HURRIED)) == alone
    assert [dict(state._shared_state) for state in states] == held
    assert (dict(os.environ), random.getstate()) == (environment, draws)
    assert np.array_equal(np.random.get_state()[1], numpy_draws[1])


def test_prompts_without_facts_are_taught_too(tmp_path):
    prompt = "<|start|>user<|message|>Left or right?<|end|><|start|>assistant"
    folder = build_tiny(tmp_path / "a", prompts=[prompt], recipe=HURRIED)
    assert (folder / "config.json").is_file()


def test_a_prompt_that_ends_elsewhere_is_refused(prompts, tmp_path):
    with pytest.raises(DataError, match="prompt 2 "):
        build_tiny(tmp_path / "a", prompts=[prompts[0], "Hour 3"], recipe=HURRIED)
    with pytest.raises(DataError, match="at least one"):
        build_tiny(tmp_path / "a", prompts=[], recipe=HURRIED)


def test_the_cache_is_keyed_by_prompts_and_recipe(prompts, tmp_path):
    built = []
    count = lambda step, steps, loss: built.append(step)  # noqa: E731
    first = tiny_path(tmp_path, prompts=prompts, recipe=HURRIED, on_progress=count)
    assert tiny_path(tmp_path, prompts=prompts, recipe=HURRIED, on_progress=count) == first
    assert len(built) == HURRIED.steps
    assert tiny_path(tmp_path, prompts=prompts[:20], recipe=HURRIED) != first


def test_a_damaged_cache_is_built_again(prompts, tmp_path):
    folder = tiny_path(tmp_path, prompts=prompts, recipe=HURRIED)
    shard = folder / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    assert tiny_path(tmp_path, prompts=prompts, recipe=HURRIED) == folder
    assert shard.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_named(prompts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="file"):
        tiny_path(tmp_path / "file", prompts=prompts, recipe=HURRIED)


def _race(cache, prompts, results):
    steps = []
    path = tiny_path(
        cache, prompts=prompts, recipe=HURRIED, on_progress=lambda *now: steps.append(now)
    )
    results.put((str(path), len(steps)))


@pytest.mark.slow
def test_two_processes_at_once_build_one_model(prompts, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, prompts, results)) for _ in range(2)]
    for racer in racers:
        racer.start()
    outcomes = [results.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    assert outcomes[0][0] == outcomes[1][0]
    assert sorted(steps for _, steps in outcomes) == [0, HURRIED.steps]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


@pytest.mark.slow
def test_the_real_tiny_model_speaks_harmony_and_has_no_favourite(cache_dir):
    folder = tiny_path(cache_dir)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt_oss"
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    prompts = shipped_prompts()
    batch = tokenizer([prompts[(7 * n) % len(prompts)] for n in range(400)], padding=True)
    batch = {name: torch.tensor(value) for name, value in batch.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        out = model.generate(**batch, max_new_tokens=40, do_sample=True, top_k=0, temperature=1.0)
    counts = Counter()
    for row in out[:, batch["input_ids"].shape[1] :]:
        text = tokenizer.decode(row)
        end = text.find("<|return|>")
        decision = parse_action(split_text(text if end < 0 else text[: end + 10]), 4)
        counts[decision.action if decision.reason is Reason.OK else "invalid"] += 1
        counts["thought"] += "analysis" in text
    assert counts["invalid"] <= 0.03 * 400
    # 100 each expected, standard deviation 8.7; the model itself may lean a little
    assert all(60 < counts[action] < 145 for action in range(4))
    assert 60 < counts["thought"] < 145
