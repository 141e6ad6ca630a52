"""Q values to rewards, by hand and by their laws; rewards of completions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_tools.chat.actions import Decision, Reason
from gptoss_tools.data.action_rewards import (
    boltzmann,
    q_to_rewards,
    settle,
    worst_reward,
)
from gptoss_tools.errors import ConfigError, DataError

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None)

BOUNDED = ["boltzmann", "regret", "minmax", "rank"]
METHODS = [*BOUNDED, "log-regret"]
NAN, INF = math.nan, math.inf
OK = Decision(0, Reason.OK)
INVALID = Decision(None, Reason.UNPARSABLE)

finite_tables = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(2, 6)),
    elements=st.floats(-1e6, 1e6, allow_subnormal=False),
)


def rewards(q, **options):
    return q_to_rewards(np.array(q, dtype=float), **options)[0]


def test_boltzmann_by_hand():
    # Q/tau = 0, ln 2, ln 5: weights 1, 2, 5 of a sum of 8.
    q = [[0.0, 0.5 * math.log(2), 0.5 * math.log(5)]]
    np.testing.assert_allclose(rewards(q, tau=0.5), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-15)


def test_regret_minmax_and_rank_by_hand():
    q = [[10.0, 9.5, 8.0, 10.0]]
    # Regrets 0, 0.5, 2, 0 in units of tau = 1, cut at 1.
    assert rewards(q, tau=1.0, method="regret").tolist() == [[1.0, 0.5, 0.0, 1.0]]
    # From 8 to 10: 2/2, 1.5/2, 0/2, 2/2.
    assert rewards(q, method="minmax").tolist() == [[1.0, 0.75, 0.0, 1.0]]
    # Of 3 others: 2 worse and one tie, 1 worse, none, 2 worse and one tie.
    expected = [[2.5 / 3, 1 / 3, 0.0, 2.5 / 3]]
    np.testing.assert_allclose(rewards(q, method="rank"), expected, rtol=1e-15)


@unhurried
@given(finite_tables, st.sampled_from(METHODS), st.floats(1e-3, 1e3))
def test_rewards_are_at_most_1_and_keep_the_order_of_the_values(q, method, tau):
    found = rewards(q, method=method, tau=tau)
    assert (found <= 1).all()
    assert (found >= 0).all() or method == "log-regret"
    order = np.argsort(q, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(found, order, axis=1), axis=1) >= 0).all()


@unhurried
@given(finite_tables, st.floats(1e-3, 1e3), st.integers(-1000, 1000))
def test_boltzmann_sums_to_1_and_ignores_a_shift(q, tau, shift):
    found = rewards(q, tau=tau)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    # The shift itself rounds: Q is known to 1e6 * 2**-53 then, and the exponent to that over tau.
    np.testing.assert_allclose(rewards(q + shift, tau=tau), found, atol=1e-9 / tau)


@unhurried
@given(finite_tables)
def test_actions_of_equal_value_share_and_one_row_does_not_touch_another(q):
    found = rewards(np.repeat(q, 2, axis=1))
    np.testing.assert_array_equal(found[:, ::2], found[:, 1::2])
    np.testing.assert_array_equal(rewards(q)[0], rewards(q[:1])[0])


def test_huge_values_and_a_tiny_tau_neither_overflow_nor_underflow_to_nan():
    q = [[1e308, -1e308], [-1000.0, -1000.1], [5e-324, 0.0]]
    for method in METHODS:
        assert np.isfinite(rewards(q, tau=1e-300, method=method)).all()


@pytest.mark.parametrize("method", BOUNDED)
def test_an_infeasible_action_gets_0_and_leaves_the_others_alone(method):
    found = rewards([[1.0, -INF, 1.2]], method=method)
    assert found[0, 1] == 0
    assert found[0, 2] > 0
    if method != "rank":
        assert found[0, [0, 2]].tolist() == rewards([[1.0, 1.2]], method=method)[0].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_value_is_masked_and_takes_no_part(method):
    found, keep = q_to_rewards(np.array([[1.0, NAN, 1.2]]), method=method, missing="mask")
    assert np.isnan(found[0, 1])
    assert found[0, [0, 2]].tolist() == rewards([[1.0, 1.2]], method=method)[0].tolist()
    assert keep.all()


def test_rows_with_an_unknown_value_can_be_dropped():
    found, keep = q_to_rewards(np.array([[1.0, NAN], [0.0, 0.0], [NAN, NAN]]), missing="drop")
    assert keep.tolist() == [False, True, False]
    assert found[keep].tolist() == [[0.5, 0.5]]


def test_rows_with_fewer_actions_ignore_the_cells_beyond():
    q = np.array([[0.0, 0.0, NAN], [0.0, 0.0, 0.0]])
    found, _ = q_to_rewards(q, n_actions=np.array([2, 3]))
    np.testing.assert_array_equal(found, [[0.5, 0.5, NAN], [1 / 3, 1 / 3, 1 / 3]])


@pytest.mark.parametrize(
    ("q", "missing", "message"),
    [
        ([[0, 1], [0, NAN]], "error", "row 2, q_action_1 is missing"),
        ([[0, 1], [INF, 1]], "mask", r"row 2, q_action_0 is \+inf"),
        ([[NAN, NAN]], "mask", "row 1, q_action_0 and all other actions"),
        ([[-INF, -INF]], "error", "row 1, q_action_0 and all other actions"),
    ],
)
def test_values_no_reward_can_come_from_name_their_place(q, missing, message):
    with pytest.raises(DataError, match=message):
        rewards(q, missing=missing)


@pytest.mark.parametrize("tau", [0.0, -1.0, NAN, INF])
def test_tau_must_be_above_0(tau):
    with pytest.raises(ConfigError, match="tau must be"):
        rewards([[0, 1]], tau=tau)


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown q_method") as caught:
        rewards([[0, 1]], method="boltzman")
    assert "did you mean boltzmann?" in caught.value.hint


def test_rows_of_nothing_known_stay_unknown():
    assert np.isnan(boltzmann(np.array([[NAN, NAN]]), 0.05)).all()


@pytest.mark.parametrize(
    ("score", "decision", "invalid_reward", "expected"),
    [
        (0.7, OK, -1.0, 0.7),
        (None, OK, -1.0, None),  # an unknown value is never punished
        (NAN, OK, "mask", None),
        (None, INVALID, "mask", None),
        (None, INVALID, -0.5, -0.5),
        (0.1, INVALID, -0.5, 0.1),  # a user's function may judge invalid answers itself
    ],
)
def test_what_a_completion_earns(score, decision, invalid_reward, expected):
    assert settle(score, decision, invalid_reward) == expected


def test_an_infinite_score_is_an_error():
    with pytest.raises(DataError, match="infinite"):
        settle(INF, OK)


def test_an_invalid_answer_can_count_as_the_worst_action_and_never_pays():
    assert settle(None, INVALID, "worst", [0.1, 0.9]) == 0.0  # the worst, at most 0
    assert settle(None, INVALID, "worst", [1.0, -2.5, NAN]) == -2.5
    assert settle(None, OK, "worst", [1.0, -2.5]) is None  # an unknown value is no invalid answer
    assert worst_reward([]) == 0.0


def test_log_regret_keeps_the_stakes_apart_where_boltzmann_earns_zero_for_both():
    q = [[0.0, -0.05, -0.2, -26.0]]  # regrets of 0, 1, 4 and 520 tau
    expected = [1.0, 1 - math.log(2), 1 - math.log(5), 1 - math.log(521)]
    assert rewards(q, tau=0.05, method="log-regret")[0] == pytest.approx(expected, abs=1e-12)
    assert rewards(q, tau=0.05)[0, 2:] == pytest.approx([0.0125, 0.0], abs=1e-3)  # e^-4 / 1.4
    # infeasible is as bad as the worst finite action; unknown stays unknown
    mixed = rewards([[2.0, 1.0, -INF, NAN]], tau=1.0, method="log-regret", missing="mask")[0]
    assert mixed[:3] == pytest.approx([1.0, 1 - math.log(2), 1 - math.log(2)])
    assert math.isnan(mixed[3])
