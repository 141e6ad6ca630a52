"""Intervals over episodes: worked out by hand for two, and counted for coverage over many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.errors import DataError
from gptoss_tools.evaluation.intervals import Resamples, bootstrap_difference, bootstrap_mean

NAN = float("nan")

rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.floats(-100, 100), st.floats(-100, 100)),
    min_size=1,
    max_size=12,
)


def test_two_episodes_give_the_means_of_each():
    # Of two drawn episodes a quarter are a twice, a half are both, a quarter are b twice:
    # 2.5 % and 97.5 % are the means of a alone, (0 + 3) / 2, and of b alone, 6.
    assert bootstrap_mean([0, 3, 6], ["a", "a", "b"], seed=0) == pytest.approx((1.5, 6.0))


def test_a_longer_episode_weighs_more_within_a_resample():
    draws = Resamples(["a", "b", "b", "b"], seed=0, resamples=400)
    twice = draws.counts_BE.tolist()
    assert sorted({tuple(c) for c in twice}) == [(0, 2), (1, 1), (2, 0)]
    # With both drawn the mean is that of the four rows, 3 / 4, not of the two episodes, 1 / 2.
    share = np.mean([c == [1, 1] for c in twice])
    assert 0.4 < share < 0.6
    middle = [c for c in twice if c == [1, 1]]
    draws.counts_BE = np.array(middle, np.uint16)
    assert draws.mean([0, 1, 1, 1]) == pytest.approx((0.75, 0.75))


def test_a_ratio_is_taken_in_each_resample():
    # a alone: (1 + 3) / (2 + 6) = 0.5; b alone: 6 / 3 = 2
    found = Resamples(["a", "a", "b"], seed=0).ratio([1, 3, 6], [2, 6, 3])
    assert found == pytest.approx((0.5, 2.0))


def test_resamples_without_a_lower_sum_say_nothing():
    # b alone would be 1 / 0; a alone is 1 / 2, both are (1 + 1) / (2 + 0) = 1
    found = Resamples(["a", "b"], seed=0).ratio([1, 1], [2, 0])
    assert found == pytest.approx((0.5, 1.0))
    assert Resamples(["a", "b"], seed=0).ratio([1, 1], [0, 0]) is None


def test_unknown_rows_leave_both_sums():
    with_gaps = bootstrap_mean([0, NAN, 3, 6, NAN], ["a", "a", "a", "b", "b"], seed=0)
    assert with_gaps == pytest.approx((1.5, 6.0))


def test_one_episode_shows_no_spread():
    assert bootstrap_mean([1, 2, 3], ["a"] * 3, seed=0) is None
    assert bootstrap_mean([1, 2, NAN], ["a", "a", "b"], seed=0) is None
    assert bootstrap_mean([NAN, NAN], ["a", "b"], seed=0) is None


def test_columns_share_their_resamples():
    values = np.random.default_rng(1).normal(size=(20, 3))
    episodes = [str(row // 4) for row in range(20)]
    found = bootstrap_mean(values, episodes, seed=3)
    assert found == [bootstrap_mean(column, episodes, seed=3) for column in values.T]


def test_the_seed_decides_the_resamples():
    values, episodes = np.random.default_rng(1).normal(size=30), list(range(30))
    first = bootstrap_mean(values, episodes, seed=5)
    assert first == bootstrap_mean(values, episodes, seed=5)
    assert first != bootstrap_mean(values, episodes, seed=6)


def test_values_that_do_not_fit_the_episodes_are_refused():
    with pytest.raises(DataError, match="3 values for the episodes of 2 rows"):
        bootstrap_mean([1, 2, 3], ["a", "b"], seed=0)


@given(rows, st.floats(-100, 100))
def test_the_interval_of_a_constant_is_that_constant(made, constant):
    found = bootstrap_mean([constant] * len(made), [m[0] for m in made], seed=0, resamples=50)
    single = len({m[0] for m in made}) == 1
    assert found is None if single else found == pytest.approx((constant, constant))


@given(rows, st.randoms())
def test_the_order_of_rows_changes_nothing(made, random):
    shuffled = random.sample(made, len(made))
    first, second = (
        bootstrap_mean([m[1] for m in order], [m[0] for m in order], seed=0, resamples=50)
        for order in (made, shuffled)
    )
    assert first is None if second is None else first == pytest.approx(second)


@given(rows)
def test_nothing_differs_from_itself(made):
    values, episodes = [m[1] for m in made], [m[0] for m in made]
    found = bootstrap_difference(values, values, episodes, seed=0, resamples=50)
    assert found in (None, (0.0, 0.0))


@given(rows)
@settings(max_examples=30)
def test_a_difference_is_paired(made):
    episodes = [m[0] for m in made]
    a, b = (np.array([m[side] for m in made]) for side in (1, 2))
    found = bootstrap_difference(a, b, episodes, seed=0, resamples=50)
    assert found == bootstrap_mean(a - b, episodes, seed=0, resamples=50)


def test_intervals_over_episodes_cover_the_truth_and_intervals_over_rows_do_not():
    """Thirty episodes of 3 to 12 rows; four fifths of the variance is between episodes."""
    generator = np.random.default_rng(0)
    simulations, episodes, covered = 300, 30, np.zeros(2)
    for _ in range(simulations):
        lengths = generator.integers(3, 13, episodes)
        names = np.repeat(np.arange(episodes), lengths)
        effect = generator.normal(0, 2, episodes)
        values = effect[names] + generator.normal(0, 1, len(names))
        for kind, groups in enumerate((names, np.arange(len(names)))):
            low, high = bootstrap_mean(values, groups, seed=1, resamples=400)
            covered[kind] += low <= 0 <= high
    over_episodes, over_rows = covered / simulations
    assert 0.90 <= over_episodes <= 0.98
    assert over_rows < 0.70
