"""Rewards, regrets and baselines against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gptoss_tools.chat.actions import Decision, Reason
from gptoss_tools.chat.completions import Completion
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.errors import DataError
from gptoss_tools.evaluation.policy import Answer
from gptoss_tools.evaluation.scoring import baselines, score

NAN = float("nan")


def table(rewards, q=None, n_actions=None) -> DecisionTable:
    rows = len(rewards)
    return DecisionTable(
        prompts=[""] * rows,
        q=None if q is None else np.array(q, float),
        rewards=np.array(rewards, float),
        n_actions=np.array(n_actions or [len(rewards[0])] * rows),
        columns=pd.DataFrame(),
        sha256="",
        _starts=[0],
        _paths=["t.csv"],
    )


def answer(index: int, action: int | None, reason: Reason = Reason.OK, tokens: int = 4) -> Answer:
    return Answer(index, "", Completion((), "return"), Decision(action, reason), tokens, 0.5)


def test_baselines_are_means_over_rows():
    found = baselines(table([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]))
    assert found["reward_uniform"] == pytest.approx(0.5)
    # action 0: (0.2 + 0.6 + 0.3) / 3 = 0.3667; action 1: (0.8 + 0.4 + 0.7) / 3 = 0.6333
    assert found["reward_fixed"] == pytest.approx(1.9 / 3)
    assert found["fixed_action"] == 1
    assert found["reward_best"] == pytest.approx((0.8 + 0.6 + 0.7) / 3)


def test_a_fixed_action_that_a_row_lacks_earns_nothing_there():
    found = baselines(table([[0.1, 0.2, 0.7], [0.4, 0.6, NAN]], n_actions=[3, 2]))
    # action 1: (0.2 + 0.6) / 2 = 0.4; action 2: (0.7 + 0) / 2 = 0.35
    assert (found["fixed_action"], found["reward_fixed"]) == (1, pytest.approx(0.4))
    assert found["reward_uniform"] == pytest.approx((1 / 3 + 0.5) / 2)


def test_unknown_rewards_take_no_part():
    found = baselines(table([[0.1, NAN], [0.5, 0.3]]))
    # uniform: (0.1 + 0.4) / 2; action 0: (0.1 + 0.5) / 2 = 0.3; action 1: 0.3 over one row
    assert found["reward_uniform"] == pytest.approx(0.25)
    assert found["reward_fixed"] == pytest.approx(0.3)


def test_an_invalid_answer_earns_nothing_and_regrets_as_the_worst_action():
    rows = table([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], q=[[0, 3], [5, 4], [1, 2]])
    given = [answer(0, 1), answer(1, 1), answer(2, None, Reason.TRUNCATED)]
    found = score(given, rows)
    assert found["reward"] == pytest.approx((0.8 + 0.4 + 0) / 3)
    assert found["invalid"] == pytest.approx(1 / 3)
    assert found["invalid_by_reason"]["truncated"] == pytest.approx(1 / 3)
    assert sum(found["invalid_by_reason"].values()) == pytest.approx(found["invalid"])
    assert found["regret"] == pytest.approx((0 + 1 + 1) / 3)
    assert found["regret_valid"] == pytest.approx(0.5)
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["action_shares"] == [0.0, 1.0]


def test_rows_are_found_by_index_in_any_order():
    rows = table([[0.2, 0.8], [0.6, 0.4]])
    assert score([answer(1, 0), answer(0, 1)], rows)["reward"] == pytest.approx(0.7)


def test_a_choice_of_unknown_value_is_counted_apart():
    found = score([answer(0, 1), answer(1, 0)], table([[0.1, NAN], [0.5, 0.3]]))
    assert (found["reward"], found["unknown"]) == (0.5, 1)


def test_an_infeasible_choice_has_its_own_share():
    rows = table([[1, 0], [0.5, 0.5]], q=[[2, -np.inf], [1, 0]])
    found = score([answer(0, 1), answer(1, 1)], rows)
    assert (found["infeasible"], found["regret"]) == (0.5, 1.0)


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no answers"):
        score([], table([[0.5, 0.5]]))


def test_an_action_that_the_row_does_not_have_is_not_scored():
    rewards = [[0.1, 0.2, 0.7], [0.4, 0.6, NAN]]
    with pytest.raises(DataError, match=r"row 2: the answer is 2, and there are 2 actions"):
        score([answer(0, 2), answer(1, 2)], table(rewards, n_actions=[3, 2]))
