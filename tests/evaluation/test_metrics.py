"""Four rows worked out by hand, what must hold for any table, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import INF, NAN, make_table, reordered, tables, tables_with

from gptoss_tools.chat.actions import Reason
from gptoss_tools.errors import DataError
from gptoss_tools.evaluation.metrics import Choices, assess, row_scores, uniform_regret

quick = partial(assess, resamples=40)
EPISODES = ["a", "a", "b", "b"]
# best, mean, worst:        4, 2, 0     6, 14/3, 3     3, 2, 1     9, 7, 5
Q = [[0, 2, 4], [6, 3, 5], [1, 3, 2], [5, 9]]
REWARDS = [[0.1, 0.2, 0.7], [0.5, 0.1, 0.4], [0.2, 0.6, 0.2], [0.3, 0.7]]
# regret 0, 3, 2 (as the worst action), 4
POLICY = Choices(np.array([2, 1, -1, 0]), ["ok", "ok", "truncated", "ok"])
BASE = Choices.of([1, 2, 1, 1])  # regret 2, 1, 0, 0


@pytest.fixture(scope="module")
def found():
    table = make_table(
        Q,
        REWARDS,
        phase=["charge", "run", "charge", "run"],
        timestamp=["2026-01-01T08:00", "2026-01-01 09:30:00", "2026-01-02T08:00:00+09:00", "noon"],
    )
    rules = {"greedy": Choices.of([0, 0, 0, -1])}  # regret 4, 0, 2, 4 (none: as the worst)
    return assess(table, POLICY, base=BASE, baselines=rules, episodes=EPISODES)


def test_what_was_assessed(found):
    assert (found["n_rows"], found["n_episodes"], found["n_actions"]) == (4, 2, 3)
    assert found["tie_tolerance"] == 1e-9


def test_regret_by_hand(found):
    assert found["regret"] == {
        "mean": (0 + 3 + 2 + 4) / 4,
        # Two episodes: a alone (0 + 3) / 2, b alone (2 + 4) / 2, see test_intervals.
        "ci95": [1.5, 3.0],
        "base": (2 + 1 + 0 + 0) / 4,
        "uniform": pytest.approx((2 + 4 / 3 + 1 + 2) / 4),
        # Action 0 loses 4 + 0 + 2 + 4, action 1 loses 2 + 3 + 0 + 0; action 2 loses 0 + 1 + 1 and,
        # where it is missing, 4.
        "fixed": 5 / 4,
        "fixed_action": 1,
        "valid_only": pytest.approx((0 + 3 + 4) / 3),
        "n_valid": 3,
        "normalised": (0 / 4 + 3 / 3 + 2 / 2 + 4 / 4) / 4,
        "normalised_n": 4,
        # regret over best - mean: 0 / 2, 3 / (4/3), 2 / 1, 4 / 2
        "over_mean": pytest.approx((0 + 9 / 4 + 2 + 2) / 4),
        "infeasible": 0,
        # 0 - 2, 3 - 1, 2 - 0, 4 - 0; a alone 0, b alone 3
        "difference": {"mean": 1.5, "ci95": [0.0, 3.0], "n": 4},
    }


def test_score_by_hand(found):
    # Regrets sum to 9, those of dice to 2 + 4/3 + 1 + 2 = 19/3: 100 (1 - 27/19).
    assert found["score"]["mean"] == pytest.approx(-800 / 19)
    # a alone: 100 (1 - 3 / (10/3)) = 10; b alone: 100 (1 - 6 / 3) = -100
    assert found["score"]["ci95"] == pytest.approx([-100, 10])


def test_shares_of_good_and_bad_answers_by_hand(found):
    assert (found["top1"], found["top1_ci95"]) == (0.25, [0.0, 0.5])
    assert (found["top1_exact"], found["near_optimal"]) == (0.25, 0.25)
    assert found["invalid"] == {
        "total": 0.25,
        "no_final": 0.0,
        "truncated": 0.25,
        "unparsable": 0.0,
        "out_of_range": 0.0,
        "n": 4,
        "upper95": None,
    }


def test_reward_by_hand(found):
    assert found["reward"] == {
        "mean": pytest.approx((0.7 + 0.1 + 0 + 0.3) / 4),
        "ci95": pytest.approx([0.15, 0.4]),  # b alone (0 + 0.3) / 2, a alone (0.7 + 0.1) / 2
        "uniform": pytest.approx((1 / 3 + 1 / 3 + 1 / 3 + 1 / 2) / 4),
        "fixed": pytest.approx((0.2 + 0.1 + 0.6 + 0.7) / 4),
        "best": pytest.approx((0.7 + 0.5 + 0.6 + 0.7) / 4),
        "base": pytest.approx((0.2 + 0.4 + 0.6 + 0.7) / 4),
        "unknown": 0,
    }


def test_actions_by_hand(found):
    assert found["actions"] == {
        "policy": pytest.approx([1 / 3, 1 / 3, 1 / 3]),  # of three valid answers
        "optimal": [0.25, 0.5, 0.25],
        "confusion": [
            [0, 1, 0, 0],  # the second row: best 0, chosen 1
            [1, 0, 0, 1],  # the fourth: best 1, chosen 0; the third: invalid
            [0, 0, 1, 0],
        ],
        "recall": [0.0, 0.0, 1.0],
    }


def test_policies_by_hand(found):
    ranked = {policy.pop("name"): policy for policy in found["policies"]}
    assert list(ranked) == ["best", "base", "fixed", "uniform", "policy", "greedy"]
    assert ranked["best"] == {
        "regret": 0.0,
        "ci95": [0.0, 0.0],
        "normalised": 0.0,
        "score": 100.0,
        "top1": 1.0,
        "reward": pytest.approx(2.5 / 4),
        "invalid": 0.0,
    }
    assert ranked["uniform"] == {
        "regret": pytest.approx(19 / 12),
        "ci95": pytest.approx([1.5, 5 / 3]),  # b alone (1 + 2) / 2, a alone (2 + 4/3) / 2
        # (best - mean) / range: 2 / 4, (4/3) / 3, 1 / 2, 2 / 4
        "normalised": pytest.approx((1 / 2 + 4 / 9 + 1 / 2 + 1 / 2) / 4),
        "score": 0.0,
        "top1": pytest.approx((1 / 3 + 1 / 3 + 1 / 3 + 1 / 2) / 4),
        "reward": pytest.approx(1.5 / 4),
        "invalid": 0.0,
    }
    assert ranked["greedy"] == {
        "regret": 10 / 4,
        "ci95": [2.0, 3.0],
        "normalised": (1 + 0 + 1 + 1) / 4,
        "score": pytest.approx(100 * (1 - 10 / (19 / 3))),
        "top1": 0.25,
        "reward": pytest.approx((0.1 + 0.5 + 0.2 + 0) / 4),
        "invalid": 0.25,
    }
    assert ranked["policy"]["regret"] == found["regret"]["mean"]
    assert (ranked["fixed"]["regret"], ranked["fixed"]["top1"]) == (1.25, 0.5)


def test_phases_and_hours_by_hand(found):
    assert found["by_phase"] == {
        "charge": {
            "n_rows": 2,
            "regret": (0 + 2) / 2,
            "ci95": [0.0, 2.0],
            "base": (2 + 0) / 2,
            "top1": 0.5,
            "reward": pytest.approx((0.7 + 0) / 2),
            "invalid": 0.5,
        },
        "run": {
            "n_rows": 2,
            "regret": (3 + 4) / 2,
            "ci95": [3.0, 4.0],
            "base": (1 + 0) / 2,
            "top1": 0.0,
            "reward": pytest.approx((0.1 + 0.3) / 2),
            "invalid": 0.0,
        },
    }
    # The fourth row's timestamp cannot be read.
    assert found["by_hour"] == {
        "8": {"n_rows": 2, "regret": 1.0, "base": 1.0, "top1": 0.5},
        "9": {"n_rows": 1, "regret": 3.0, "base": 1.0, "top1": 0.0},
    }


def test_without_base_samples_rewards_and_columns_these_sections_are_empty():
    found = quick(make_table(Q), POLICY)
    assert (found["reward"], found["sampled"]) == (None, None)
    assert (found["regret"]["base"], found["regret"]["difference"]) == (None, None)
    assert (found["by_phase"], found["by_hour"]) == ({}, {})
    assert found["n_episodes"] == 4  # every row is its own
    assert [p["reward"] for p in found["policies"]] == [None] * 4


def test_columns_beyond_every_rows_actions_change_nothing():
    table = make_table(Q, REWARDS)
    longer = [[[*row, *[NAN] * (4 - len(row))] for row in block] for block in (Q, REWARDS)]
    wide = dataclasses.replace(make_table(*longer), n_actions=table.n_actions)
    plain, padded = (quick(t, POLICY, samples=[POLICY, BASE]) for t in (table, wide))
    assert padded == plain


def test_no_model_is_needed():
    asked = "import sys, gptoss_tools.evaluation.metrics; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert answer.stdout.strip() == "False"


def test_row_scores_by_hand():
    # A range of 100: 96 is within 5 % of it; the tolerance of 0.5 makes 99.6 a best action.
    table = make_table([[100, 99.6, 0], [100, 96, 0], [100, 94, 0], [7, 7, 7]])
    found = row_scores(table, Choices.of([1, 1, 1, 2]), tie_tolerance=0.5)
    assert found.regret == pytest.approx([0.4, 4, 6, 0])
    assert found.top1.tolist() == [True, False, False, True]
    assert found.top1_exact.tolist() == [False, False, False, True]
    assert found.near_optimal.tolist() == [True, True, False, True]
    # All equal: there is no range to be a share of.
    assert found.normalised == pytest.approx([0.004, 0.04, 0.06, NAN], nan_ok=True)
    assert np.isnan(found.over_mean[3]) and np.isnan(found.reward).all()


def test_equal_values_leave_dice_nothing_to_lose_whatever_rounding_does():
    table = make_table([[0.1, 0.1, 0.1]])
    assert uniform_regret(table).tolist() == [0.0]
    assert quick(table, Choices.of([1]))["score"] == {"mean": None, "ci95": None}


def test_infeasible_and_unknown_values():
    table = make_table(
        [[4, -INF, 1], [2, 0, NAN], [NAN, -INF], [-INF, 5, 3]],
        [[0.9, 0, 0.1], [0.6, 0.4, NAN], [0.5, 0.5], [0, 0.9, 0.1]],
    )
    chosen = Choices.of([1, 2, 1, -1])
    found = row_scores(table, chosen)
    # -inf and unknown have no regret; nothing is known of the third row; invalid: 5 - 3.
    assert found.regret == pytest.approx([NAN, NAN, NAN, 2], nan_ok=True)
    assert found.infeasible.tolist() == [True, False, False, False]
    assert found.reward == pytest.approx([0, NAN, NAN, 0], nan_ok=True)
    assert uniform_regret(table) == pytest.approx([1.5, 1, NAN, 1], nan_ok=True)
    result = quick(table, chosen)
    assert (result["regret"]["mean"], result["regret"]["infeasible"]) == (2.0, 1)
    assert (result["regret"]["n_valid"], result["regret"]["valid_only"]) == (0, None)
    assert result["reward"]["unknown"] == 2
    # Dice get 1/3, 1/2 and 1/3; the third row takes no part.
    assert result["reward"]["uniform"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert result["actions"]["policy"] == pytest.approx([0, 2 / 3, 1 / 3])  # of valid answers
    assert result["top1"] == 0.0  # of three rows: a choice of unknown value is not a best one
    assert np.sum(result["actions"]["confusion"]) == 3
    # Against dice in the row whose regret is known: 100 (1 - 2 / 1).
    assert result["score"]["mean"] == -100


def test_no_action_wins_the_fixed_policy_by_leaving_rows_out():
    # Action 2 is best where it is feasible; elsewhere it counts as the worst.
    table = make_table([[1, 0, 2], [9, 0, -INF], [9, 0, NAN]])
    found = quick(table, Choices.of([0, 0, 0]))["regret"]
    assert (found["fixed_action"], found["fixed"]) == (0, pytest.approx(1 / 3))


def test_ties_in_the_confusion_go_to_the_chosen_action():
    table = make_table([[3, 3, 0], [3, 3, 0], [0, 3, 3]])
    found = quick(table, Choices.of([1, 2, 0]))["actions"]
    # 1 is one of the best; 2 is not, and neither is 0: these count for the first best action.
    assert found["confusion"] == [[0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert found["recall"] == [0.0, 0.5, None]
    assert found["optimal"] == pytest.approx([2 / 3, 1 / 3, 0])


def test_invalid_answers_everywhere():
    table = make_table(Q, REWARDS)
    reasons = ["no_final", "truncated", "unparsable", "out_of_range"]
    found = quick(table, Choices(np.full(4, -1), reasons))
    assert found["regret"]["mean"] == (4 + 3 + 2 + 4) / 4
    assert (found["regret"]["valid_only"], found["regret"]["n_valid"]) == (None, 0)
    assert [found["invalid"][r] for r in ("total", *reasons)] == [1, 0.25, 0.25, 0.25, 0.25]
    assert (found["top1"], found["near_optimal"], found["reward"]["mean"]) == (0, 0, 0)
    assert found["actions"]["policy"] == found["actions"]["recall"] == [0, 0, 0]
    assert found["actions"]["confusion"] == [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 1]]


@pytest.mark.parametrize(("rows", "upper"), [(2, 1.0), (6, 0.5), (300, 0.01)])
def test_no_invalid_answer_seen_leaves_three_in_n(rows, upper):
    found = quick(make_table([[0, 1]] * rows), Choices.of([1] * rows))
    assert found["invalid"]["upper95"] == pytest.approx(upper)


def test_one_episode_has_no_intervals():
    found = quick(make_table(Q, REWARDS), POLICY, base=BASE, episodes=["a"] * 4)
    assert found["n_episodes"] == 1
    assert found["regret"]["ci95"] is found["score"]["ci95"] is found["top1_ci95"] is None
    assert found["regret"]["difference"]["ci95"] is found["reward"]["ci95"] is None


@pytest.mark.parametrize(
    ("cell", "hours"),
    [
        ("2026-03-04T05:06:07Z", ["5"]),
        (datetime.datetime(2026, 3, 4, 23), ["23"]),
        ("2026-03-04", []),  # a day is not midnight
        ("5 o'clock", []),
        (5, []),
        (pd.NaT, []),
        (None, []),
    ],
)
def test_hours_are_read_from_timestamps(cell, hours):
    found = quick(make_table([[0, 1]], timestamp=[cell]), Choices.of([1]))
    assert list(found["by_hour"]) == hours


def test_rows_without_a_phase_are_in_none():
    table = make_table([[0, 1]] * 3, phase=["day", None, ""])
    found = quick(table, Choices.of([1, 0, 0]))["by_phase"]
    assert list(found) == ["day"] and found["day"]["n_rows"] == 1


def test_a_rule_may_have_any_name():
    rules = {"policy": BASE, "best": POLICY}
    found = quick(make_table(Q), POLICY, baselines=rules)
    assert found["regret"]["mean"] == 9 / 4
    assert sorted(p["name"] for p in found["policies"]) == sorted(
        ["best", "policy", "policy", "best", "fixed", "uniform"]
    )


def test_choices_of_a_rule_read_numbers():
    found = Choices.of([2.0, NAN, -1, 0])
    assert found.action.tolist() == [2, -1, -1, 0]
    assert list(found.reason) == ["ok", "out_of_range", "out_of_range", "ok"]
    with pytest.raises(DataError, match=r"row 2: the action 0.5 is not a whole number"):
        Choices.of([1, 0.5])
    with pytest.raises(DataError, match="whole numbers"):
        Choices.of(["one"])


def test_what_does_not_fit_is_refused():
    table = make_table(Q, REWARDS)
    with pytest.raises(DataError, match="has no q_action columns"):
        assess(make_table(None, REWARDS), POLICY)
    with pytest.raises(DataError, match="no row of the table has a finite"):
        assess(make_table([[NAN, -INF]]), Choices.of([0]))
    with pytest.raises(DataError, match=r"t.csv row 2, q_action_1 is \+inf"):
        assess(make_table([[0, 1], [0, INF]]), Choices.of([0, 0]))
    with pytest.raises(DataError, match="answer of policy has 2 rows, and the table has 4"):
        assess(table, Choices.of([0, 0]))
    with pytest.raises(DataError, match="answer of greedy has 5 rows"):
        assess(table, POLICY, baselines={"greedy": Choices.of([0] * 5)})
    with pytest.raises(DataError, match="answer of sample 2 has 1 rows"):
        assess(table, POLICY, samples=[POLICY, Choices.of([0])])
    with pytest.raises(DataError, match="for the episodes of 3 rows"):
        assess(table, POLICY, episodes=["a", "a", "b"])
    with pytest.raises(DataError, match=r"t.csv row 4: the answer of base is 2, and there are 2"):
        assess(table, POLICY, base=Choices.of([2, 2, 2, 2]))
    with pytest.raises(DataError, match=r"row 1: the answer is -1 and its reason 'ok'"):
        row_scores(table, Choices(np.array([-1, 0, 0, 0]), [Reason.OK] * 4))


@given(tables_with(1))
def test_regret_is_never_negative_and_never_above_the_range(made):
    table, (policy,), _ = made
    found = row_scores(table, policy)
    known = ~np.isnan(found.regret)
    assert (found.regret[known] >= 0).all()
    assert (found.normalised[~np.isnan(found.normalised)] <= 1).all()
    assert (uniform_regret(table)[known] >= 0).all()
    assert (found.top1 <= found.near_optimal).all() and (found.top1_exact <= found.top1).all()


@given(tables())
def test_the_best_policy_is_perfect(table):
    known = np.where(np.isfinite(table.q), table.q, -INF)
    found = quick(table, Choices.of(known.argmax(axis=1)), tie_tolerance=0.0)
    assert found["regret"]["mean"] == 0
    assert found["score"]["mean"] in (100, None)  # None: all values are equal
    assert found["top1"] == found["top1_exact"] == 1
    assert found["policies"][0]["name"] == "best"


@given(tables_with(3))
@settings(max_examples=50)
def test_everything_is_plain_json_and_consistent(made):
    table, (policy, base, other), episodes = made
    found = quick(table, policy, base=base, samples=[base, other], episodes=episodes)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    regrets = [p["regret"] for p in found["policies"] if p["regret"] is not None]
    assert regrets == sorted(regrets)
    parts = [found["invalid"][r] for r in ("no_final", "truncated", "unparsable", "out_of_range")]
    assert sum(parts) == pytest.approx(found["invalid"]["total"])
    assert found["regret"]["fixed_action"] < found["n_actions"]


@given(tables_with(2), st.randoms())
@settings(max_examples=50)
def test_the_order_of_rows_changes_nothing(made, random):
    table, (policy, base), episodes = made
    order = random.sample(range(len(table)), len(table))
    plain, moved = (
        quick(
            reordered(table, rows),
            Choices.of(policy.action[rows]),
            base=Choices.of(base.action[rows]),
            episodes=[episodes[row] for row in rows],
        )
        for rows in (list(range(len(table))), order)
    )
    for key in ("regret", "score", "reward", "actions", "invalid"):
        assert flat(moved[key]) == pytest.approx(flat(plain[key]), abs=1e-9)


def flat(value) -> dict[str, float]:
    """Numbers of a nested object by their place, None left out."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, part in parts:
        if isinstance(part, dict | list):
            found |= {f"{key}/{inner}": number for inner, number in flat(part).items()}
        elif part is not None:
            found[str(key)] = part
    return found


@given(tables_with(1))
def test_a_policy_does_not_differ_from_itself(made):
    table, (policy,), episodes = made
    found = quick(table, policy, base=policy, episodes=episodes)["regret"]["difference"]
    assert found["mean"] in (0, None)
    assert found["ci95"] in ([0, 0], None)
