"""Draws by hand: votes, the best of them, pass@k and calibration."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tables import INF, NAN, make_table, tables_with

from gptoss_tools.evaluation.metrics import Choices, assess
from gptoss_tools.evaluation.sampled import calibration, count_votes, majority, pass_at

quick = partial(assess, resamples=40)
# Four draws per row; regrets: 0 0 4 2, then 1 (invalid: as the worst) 1 1 1, then 3 3 0 0.
DRAWS = [[0, -1, 1], [0, 1, 1], [2, -1, 0], [1, -1, 0]]
Q = [[4, 2, 0], [6, 5], [3, 0]]
REWARDS = [[0.5, 0.3, 0.2], [0.9, 0.1], [0.75, 0.25]]


@pytest.fixture(scope="module")
def sampled():
    draws = [Choices.of(draw) for draw in DRAWS]
    table = make_table(Q, REWARDS)
    first = Choices.of([0, 0, 0])
    return assess(table, first, samples=draws, episodes=["a", "b", "b"])["sampled"]


def test_the_mean_of_draws_by_hand(sampled):
    # rows: (0 + 0 + 4 + 2) / 4 = 1.5, 1, (3 + 3) / 4 = 1.5
    assert sampled["n"] == 4
    assert sampled["regret"]["mean"] == pytest.approx((1.5 + 1 + 1.5) / 3)
    assert sampled["regret"]["ci95"] == pytest.approx([1.25, 1.5])  # b alone, a alone
    # rewards: (0.5 + 0.5 + 0.2 + 0.3) / 4, (0 + 0.1 + 0 + 0) / 4, (0.25 * 2 + 0.75 * 2) / 4
    assert sampled["reward"] == pytest.approx((0.375 + 0.025 + 0.5) / 3)
    assert sampled["top1"] == pytest.approx((2 / 4 + 0 + 2 / 4) / 3)
    assert sampled["invalid"] == pytest.approx(3 / 12)


def test_the_majority_by_hand(sampled):
    # 0 (twice), 1 (the only valid answer), 0 (two each: the smaller)
    assert sampled["majority"] == {
        "regret": pytest.approx(1 / 3),
        "ci95": pytest.approx([0, 0.5]),
        "top1": pytest.approx(2 / 3),
        "reward": pytest.approx((0.5 + 0.1 + 0.75) / 3),
        "invalid": 0.0,
    }


def test_the_best_draw_by_hand(sampled):
    # In the second row the valid answer 1 is as bad as the invalid ones, and comes first.
    assert sampled["best_of"] == sampled["majority"]


def test_pass_at_k_by_hand(sampled):
    # c = 2, 0, 2 of n = 4. k = 1: 1/2, 0, 1/2. k = 2: 1 - C(2, 2) / C(4, 2) = 5/6, 0, 5/6.
    assert sampled["pass_at"] == pytest.approx({"1": 1 / 3, "2": 5 / 9, "4": 2 / 3})


def test_calibration_by_hand(sampled):
    # Confidence 2/4, 1/4, 2/4, right 1, 0, 1: ECE = (2 |0.5 - 1| + 1 |0.25 - 0|) / 3
    assert sampled["calibration"]["ece"] == pytest.approx(1.25 / 3)
    assert sampled["calibration"]["bins"] == [
        {"low": 0.2, "high": 0.3, "n": 1, "confidence": 0.25, "correct": 0.0},
        {"low": 0.4, "high": 0.5, "n": 2, "confidence": 0.5, "correct": 1.0},
    ]
    # Frequencies (.5 .25 .25), (0 1), (.5 .5) from the rewards: 0.05, 0.9, 0.25
    assert sampled["calibration"]["tv"] == pytest.approx((0.05 + 0.9 + 0.25) / 3)


def test_votes_count_invalid_answers_last():
    table = make_table(Q)
    votes = count_votes(table, [Choices.of(draw) for draw in DRAWS])
    assert votes.tolist() == [[2, 1, 1, 0], [0, 1, 0, 3], [2, 2, 0, 0]]
    assert majority(votes).action.tolist() == [0, 1, 0]


def test_no_valid_draw_at_all():
    draws = [Choices.of([-1, 0]), Choices.of([-1, 0])]
    table = make_table([[3, 1], [3, 1]], [[0.5, 0.5], [0.75, 0.25]])
    found = quick(table, draws[0], samples=draws)["sampled"]
    assert found["majority"]["invalid"] == 0.5
    assert found["majority"]["regret"] == found["best_of"]["regret"] == (2 + 0) / 2
    assert found["reward"] == found["majority"]["reward"] == (0 + 0.75) / 2
    # Confidence 0 and wrong, 1 and right.
    assert found["calibration"]["ece"] == 0
    assert [b["low"] for b in found["calibration"]["bins"]] == [0.0, 0.9]
    # Only the second row has answers: (1 0) from (.75 .25).
    assert found["calibration"]["tv"] == 0.25


def test_infeasible_and_unknown_draws_come_last():
    table = make_table([[4, -INF, 1], [2, 0, NAN], [NAN, NAN], [5, -INF, 0]])
    draws = [Choices.of([1, 2, 0, 1]), Choices.of([2, 1, 0, -1])]
    found = quick(table, draws[1], samples=draws)["sampled"]
    # The known draws alone: regrets 3, 2 and 5 (invalid); the third row has no values.
    assert found["regret"]["mean"] == found["best_of"]["regret"] == pytest.approx(10 / 3)
    assert (found["best_of"]["invalid"], found["reward"]) == (0.25, None)
    assert found["pass_at"] == {"1": 0.0, "2": 0.0}
    assert sum(b["n"] for b in found["calibration"]["bins"]) == 3


def test_rewards_that_are_no_distribution_have_no_distance():
    draws = [Choices.of([0, 1])]
    for rewards in ([[1, 1], [0, 0.5]], [[0.5, NAN], [NAN, 1]]):
        table = make_table([[1, 0], [1, 0]], rewards)
        found = quick(table, draws[0], samples=draws)["sampled"]
        assert found["calibration"]["tv"] is None


def test_one_vote_share_lies_in_one_bin_whatever_rounding_does():
    # 3 of 10, 6 of 20 and 30 of 100 are 0.3: the bin (0.2, 0.3]
    for scale in (1, 2, 10):
        votes = np.array([[3, 0, 7]]) * scale
        assert [b["high"] for b in calibration(votes, np.ones(1))["bins"]] == [0.3]


@given(st.integers(1, 40), st.data())
def test_pass_at_k_is_the_fraction_of_subsets_with_a_right_answer(n, data):
    correct = data.draw(st.integers(0, n))
    for k, share in pass_at(np.array([correct]), n).items():
        expected = 1 - comb(n - correct, int(k)) / comb(n, int(k))
        assert share == pytest.approx(expected, abs=1e-12)


@given(tables_with(5))
def test_more_draws_never_hurt_and_one_is_the_mean(made):
    table, draws, episodes = made
    found = quick(table, draws[0], samples=draws, episodes=episodes)["sampled"]
    shares = list(found["pass_at"].values())
    assert list(found["pass_at"]) == ["1", "2", "4", "5"]
    assert all(low <= high + 1e-12 for low, high in pairwise(shares))
    assert shares[0] == pytest.approx(found["top1"])
    assert shares[-1] == pytest.approx(found["best_of"]["top1"])
    if found["best_of"]["regret"] is not None:
        assert found["best_of"]["regret"] <= found["regret"]["mean"] + 1e-9


@given(tables_with(1))
def test_equal_draws_are_all_one_policy(made):
    table, (policy,), episodes = made
    found = quick(table, policy, samples=[policy] * 3, episodes=episodes)
    for kind in ("majority", "best_of"):
        assert found["sampled"][kind]["regret"] == found["regret"]["mean"]
        assert found["sampled"][kind]["ci95"] == found["regret"]["ci95"]
        assert found["sampled"][kind]["top1"] == found["top1"]
