"""Rewards by name and by address, what they ask of a table, and how several are added up."""

from __future__ import annotations

import importlib

import pytest
from answers_lab import answered
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools import registry
from gptoss_tools.chat.actions import Decision, Reason
from gptoss_tools.chat.completions import Completion
from gptoss_tools.errors import ConfigError, TrainingError
from gptoss_tools.rewards import Answered, batch_reward, matching, reward
from gptoss_tools.rewards.combined import Rewards, all_kinds, find, names_of, needed
from gptoss_tools.settings import RewardSettings

MODULE = '''
"""Rewards of every form."""

import sys


def documented(decision, rewards_K, completion, row):
    """By the row."""
    return None if decision.action is None else rewards_K[decision.action] * row["scale"]


def part_of_it(row, completion):
    return len(completion.final or "") / row["scale"]


def one(answered, settings):
    return len(answered.text) + settings.numeric_tolerance


def alone(*, answered):
    return 3


def trl(prompts, completions, **kwargs):
    return [len(c) + s for c, s in zip(completions, kwargs["scale"])]


def named(completions, scale, row, other=None):
    return [s for s in scale]


def short(prompts, completions):
    return [1.0]


def broken(completions):
    return [1 / 0]


def leaving(completions):
    sys.exit()


def leaving_too(answered):
    raise SystemExit("enough")


def other(text):
    return 1


def positions(answered, settings, /):
    return 1


class Judge:
    def __init__(self, settings):
        pass


async def later(answered):
    return 1
'''


@pytest.fixture
def own(tmp_path):
    """Write the user's module into the current folder."""
    (tmp_path / "own_rewards.py").write_text(MODULE)
    importlib.invalidate_caches()


def score(name, *answers, **settings):
    return Rewards(RewardSettings(reward=[name], **settings))(answers).total


CHOSEN = Answered(
    "P",
    answered("[1]").completion,
    {"row": 2, "scale": 10},
    Decision(1, Reason.OK),
    (0.25, 0.75),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("documented", 7.5),
        ("part_of_it", 0.3),
        ("one", 3.000001),
        ("alone", 3.0),
        ("trl", 13.0),
        ("named", 10.0),
    ],
)
def test_an_own_function_of_each_form_is_called_as_its_parameters_say(own, name, expected):
    assert score(f"own_rewards:{name}", CHOSEN) == [pytest.approx(expected)]


@pytest.mark.parametrize("name", ["other", "positions", "Judge", "later"])
def test_any_other_form_is_refused_with_the_forms(own, name):
    with pytest.raises(ConfigError, match="none of a reward's forms") as caught:
        find(f"own_rewards:{name}")
    for form in ("f(answered, settings)", "f(decision, rewards_K,", "f(prompts, completions,"):
        assert form in caught.value.hint


def test_a_column_that_trls_form_names_must_be_in_the_table(own):
    wanted = RewardSettings(reward=["exact", "own_rewards:named", "own_rewards:trl"])
    columns = {"answer": "exact", "scale": "own_rewards:named"}
    assert needed(wanted) == {"values": False, "columns": columns}


def test_an_own_decision_reward_counts_invalid_answers_as_decision_does(own):
    nothing = Answered("P", Completion((), "none"), CHOSEN.row, Decision(None, Reason.TRUNCATED))
    acting = Answered(**{**vars(nothing), "rewards_K": (0.5, -2.0)})
    assert score("own_rewards:documented", nothing, acting) == [None, -2.0]
    assert score("decision", acting, CHOSEN) == [-2.0, 0.75]
    assert score("decision", acting, invalid_reward="mask") == [None]
    assert needed(RewardSettings()) == {"values": True, "columns": {}}


def test_a_failing_or_short_reward_is_named(own):
    for name, message in (
        ("short", "short returned 1 rewards for 2 answers"),
        ("broken", "broken failed: ZeroDivisionError"),
        ("leaving", "leaving failed: SystemExit"),
        ("leaving_too", "leaving_too failed on row 3: SystemExit: enough"),
    ):
        with pytest.raises(TrainingError, match=message):
            score(f"own_rewards:{name}", CHOSEN, CHOSEN)


def test_names_in_logs_are_short_where_that_tells_them_apart():
    assert names_of(RewardSettings(reward=["exact", "a.b:f", "a:g", "c:g"])) == [
        "exact",
        "f",
        "a.g",
        "c.g",
    ]


@reward("lab_cells", columns=("cells",))
def from_cells(answer, settings):
    """What the row says."""
    return answer.row["cells"].pop(0)


@batch_reward("lab_batch", reads=("judge_model",))
class Batch:
    """Twice what the row says, all at once."""

    def __init__(self, settings):
        self.asked = 0

    def __call__(self, answers):
        self.asked += len(answers)
        return [2 * answered.row["cells"][0] for answered in answers]

    def figures(self):
        return {"lab/asked": float(self.asked)}


def test_the_sum_is_weighted_and_each_reward_is_kept_apart():
    rewards = Rewards(RewardSettings(reward=["lab_batch", "lab_cells"], reward_weights=[0.5, 3]))
    scores = rewards([answered("", cells=[2.0]), answered("", cells=[-1.0])])
    assert scores.apart == {"lab_batch": [4.0, -2.0], "lab_cells": [2.0, -1.0]}
    assert scores.total == [8.0, -4.0]  # 0.5 * 4 + 3 * 2
    assert rewards.figures() == {"lab/asked": 2.0}
    assert rewards.kinds["lab_batch"].reads == ("judge_model",)


value = st.one_of(st.none(), st.floats(-9, 9), st.just(float("nan")))


@settings(deadline=None)
@given(st.lists(st.tuples(value, value), max_size=6), st.floats(-2, 2))
def test_one_reward_that_is_unknown_masks_the_completion(pairs, weight):
    scores = Rewards(RewardSettings(reward=["lab_left", "lab_right"], reward_weights=[weight, 1]))(
        [answered("", left=left, right=right) for left, right in pairs]
    )
    for (left, right), total in zip(pairs, scores.total, strict=True):
        if left is None or right is None or left != left or right != right:
            assert total is None
        else:
            assert total == weight * left + right


for side in ("left", "right"):
    reward(f"lab_{side}")(lambda answered, settings, side=side: answered.row[side])


def test_a_single_reward_is_summed_to_its_own_bits():
    scores = Rewards(RewardSettings(reward=["lab_left"]))
    assert scores([answered("", left=0.1 + 0.2)]).total == [0.1 + 0.2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": ["exact", "exact"]}, "twice"),
        ({"reward": ["format"], "answer_tags": ["<a>", "<a>"]}, "four different tags"),
        ({"reward": ["format"], "answer_tags": ["<reasoning>", "</a>"]}, "four different tags"),
        ({"reward": ["format"], "answer_tags": [" ", "</a>"]}, "four different tags"),
        ({"answer_tags": ["<a>,,</a>"]}, "at least 2"),
        ({"reward": ["exact"], "reward_weights": [1, 2]}, "2 numbers for 1 rewards"),
        ({"reward": []}, "at least 1"),
        ({"invalid_reward": "drop"}, "mask"),
        ({"invalid_reward": float("inf")}, "finite"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RewardSettings(**changes)


def test_lists_may_be_written_with_commas():
    given = {"reward": ["format, exact", "a.b:f"], "reward_weights": ["0.5,1", 2]}
    found = RewardSettings(**given, rubric_weights="1,0.7,0.3,0.9", judge_prices=["2,8"])
    assert found.reward == ["format", "exact", "a.b:f"]
    assert found.reward_weights == [0.5, 1.0, 2.0]
    assert (found.rubric_weights, found.judge_prices) == ([1.0, 0.7, 0.3, 0.9], [2.0, 8.0])
    tags = RewardSettings(answer_tags="<a>,</a>", reasoning_tags=["(,", "),"])  # type: ignore[arg-type]
    assert (tags.answer_tags, tags.reasoning_tags) == (["<a>", "</a>"], ["(,", "),"])


def test_an_old_runs_single_name_is_a_list_of_one():
    assert RewardSettings.model_validate({"reward": "decision"}).reward == ["decision"]


def test_executing_a_module_again_replaces_its_rewards_and_a_taken_name_is_a_bug():
    before = registry.get("reward", "exact")
    importlib.reload(matching)
    after = registry.get("reward", "exact")
    assert after is not before and find("exact").name == "exact"
    with pytest.raises(ValueError, match="already registered"):
        reward("exact")(from_cells)
    importlib.reload(importlib.import_module("gptoss_tools.rewards.answered"))
    importlib.reload(matching)  # kinds of both versions of the class serve
    assert {"decision", "exact"} <= {kind.name for kind in all_kinds()}


def test_every_built_in_reward_says_in_a_sentence_what_it_is():
    room = "gptoss_tools.rewards."
    ours = [k for k in all_kinds() if registry.get("reward", k.name).__module__.startswith(room)]
    names = ["decision", "exact", "format", "numeric", "regex", "rubric", "rubric-overlap"]
    assert [kind.name for kind in ours] == names
    for kind in ours:
        assert kind.summary and set(kind.reads) <= set(RewardSettings.model_fields), kind.name
