"""StepStream: draws are a pure function of (seed, micro-step)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.core.stream import StepStream, value_columns
from gptoss_tools.errors import ConfigError, DataError

ROWS = st.integers(1, 300)
PROMPTS = st.integers(1, 12)
SEEDS = st.integers(-(2**63), 2**64)
STEPS = st.integers(0, 2**40)
PINNED = [[6, 17, 13], [14, 29, 11], [0, 18, 11]]


@given(ROWS, PROMPTS, SEEDS, STEPS, st.lists(STEPS, max_size=4))
def test_a_draw_depends_on_nothing_but_seed_and_micro_step(n, k, seed, t, earlier):
    stream = StepStream(n, k, 4, seed)
    for other in earlier:
        stream.draw(other)
    assert np.array_equal(stream.draw(t), StepStream(n, k, 4, seed).draw(t))


@given(ROWS, PROMPTS, SEEDS, STEPS)
def test_a_draw_holds_distinct_rows_of_the_table(n, k, seed, t):
    rows = StepStream(n, k, 1, seed).draw(t)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == len(rows) == min(n, k)
    assert rows.min() >= 0 and rows.max() < n


@given(ROWS, PROMPTS, st.integers(1, 9), SEEDS, STEPS)
def test_each_drawn_row_comes_once_per_generation_consecutively(n, k, generations, seed, t):
    stream = StepStream(n, k, generations, seed)
    expected = [row for row in stream.draw(t).tolist() for _ in range(generations)]
    assert stream.rows(t).tolist() == expected


@given(ROWS, PROMPTS, SEEDS, STEPS, st.integers(1, 64), st.integers(1, 64))
def test_the_group_size_does_not_change_the_draws(n, k, seed, t, few, many):
    assert np.array_equal(StepStream(n, k, few, seed).draw(t), StepStream(n, k, many, seed).draw(t))


@given(ROWS, PROMPTS, SEEDS, st.integers(0, 1000))
def test_iteration_from_t_gives_the_draws_from_t_on(n, k, seed, t):
    stream = StepStream(n, k, 2, seed)
    from_t = itertools.islice(stream.iterate(t), 3)
    assert [d.tolist() for d in from_t] == [stream.draw(t + i).tolist() for i in range(3)]


@given(SEEDS, SEEDS)
def test_other_seeds_give_other_draws(one, other):
    def sequence(seed):
        return [StepStream(10**6, 4, 1, seed).draw(t).tolist() for t in range(4)]

    assert (sequence(one) == sequence(other)) == (one % 2**64 == other % 2**64)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_row_comes_up_and_all_about_equally_often(place):
    # 7 rows, 3 per draw, 7000 draws: each place of a draw holds each row 1000 times on average;
    # the standard deviation is sqrt(7000 * 1/7 * 6/7) = 29.3, and 6 of them are 176.
    stream = StepStream(7, 3, 1, 42)
    counts = np.bincount([stream.draw(t)[place] for t in range(7000)], minlength=7)
    assert np.abs(counts - 1000).max() < 176


def test_the_draws_of_seed_42_never_change():
    # Pinned: a run begun with an older version has to resume with the same prompts.
    stream = StepStream(40, 3, 16, 42)
    assert [stream.draw(t).tolist() for t in range(3)] == PINNED


def test_more_prompts_than_rows_are_clipped_and_said():
    stream = StepStream(3, 5, 2, 0)
    assert (stream.prompts_per_step, stream.clipped) == (3, True)
    assert sorted(stream.draw(0).tolist()) == [0, 1, 2]
    assert not StepStream(3, 3, 2, 0).clipped


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="no rows"):
        StepStream(0, 1, 16, 42)


@pytest.mark.parametrize("prompts, generations", [(0, 4), (1, 0)])
def test_empty_draws_are_refused(prompts, generations):
    with pytest.raises(ConfigError, match="at least 1"):
        StepStream(5, prompts, generations, 42)


def test_reward_columns_are_padded_with_none():
    values = np.array([[0.25, 0.75, np.nan], [0.5, np.nan, 0.5]])
    assert value_columns(values) == {
        "reward_action_0": [0.25, 0.5],
        "reward_action_1": [0.75, None],
        "reward_action_2": [None, 0.5],
    }


def test_rows_may_have_different_numbers_of_actions():
    assert value_columns([[1.0, 0.0], [0.2, 0.3, 0.5]]) == {
        "reward_action_0": [1.0, 0.2],
        "reward_action_1": [0.0, 0.3],
        "reward_action_2": [None, 0.5],
    }


def test_an_infinite_reward_is_refused_by_row_and_column():
    with pytest.raises(DataError, match="row 2: reward_action_1 is infinite"):
        value_columns([[0.0, 1.0], [0.0, np.inf]])


def test_an_infinite_q_value_passes_because_it_means_infeasible():
    assert value_columns([[-np.inf, 1.0]], "q")["q_action_0"] == [-np.inf]
