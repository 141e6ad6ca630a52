"""Tables of decisions: exact values, the promised rows, and stakes worth learning."""

import numpy as np
import pytest

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.tes.baselines import BASELINES
from gptoss_tools.tes.dataset import (
    from_series,
    make_dataset,
    make_rows,
    make_series,
    solve_series,
)
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.series import Series, generate, read_series

Q4 = [f"q_action_{k}" for k in range(4)]


def boltzmann(q, tau=0.05):
    weight = np.exp((q - q.max(1, keepdims=True)) / tau)
    return weight / weight.sum(1, keepdims=True)


def test_columns_counts_and_seeds_are_as_promised():
    table = make_dataset(episodes=4, days=2, seed=7, on_path_rows=5, off_path_rows=3)
    assert list(table.columns) == [
        "episode", "timestep", "timestamp", "soc", "prompt", "optimal_action",
        "baseline_greedy", "baseline_load_following", "baseline_night", "baseline_solar",
        "baseline_plan", *Q4,
    ]  # fmt: skip
    assert list(table.episode.unique()) == ["duck-7", "noon-8", "peak-9", "duck-10"]
    assert (table.groupby("episode").size() == 8).all()
    again = make_dataset(episodes=4, days=2, seed=7, on_path_rows=5, off_path_rows=3)
    assert table.equals(again)
    held_out = make_dataset(episodes=2, days=2, seed=11, on_path_rows=5, off_path_rows=3)
    assert not set(table.prompt) & set(held_out.prompt)


def test_all_on_path_rows_are_the_optimal_run():
    plant = Plant()
    series = generate("noon", 3, 4)
    rows = make_rows(plant, series, start_soc=150.0)
    assert len(rows) == 30
    run = solve_series(plant, series).optimum(150.0)
    for row in rows:
        assert row["soc"] == run.soc[row["timestep"]]
        assert row["optimal_action"] == run.action[row["timestep"]]
        assert row["timestamp"] == series.time[row["timestep"]].isoformat()


def test_every_value_is_the_exact_one_and_the_best_is_best():
    plant = Plant(levels=(0, 0.5, 1), capacity_kwh=120)
    series = generate("peak", 2, 9, plant=plant)
    solution = solve_series(plant, series).solution
    table = from_series(plant, series, start_soc=60, off_path_rows=40, seed=3)
    q = table[[f"q_action_{k}" for k in range(3)]].to_numpy()
    for i, row in enumerate(table.itertuples()):
        assert 0 <= row.soc <= 120
        assert np.array_equal(q[i], solution.q(row.timestep, row.soc))
        assert q[i][row.optimal_action] >= q[i].max() - 1e-9
    assert (table.soc < 0.15 * 120).sum() >= 14  # every third of 40 is drawn there


def test_every_rule_stands_beside_its_row():
    plant, series = Plant(), generate("duck", 2, 3)
    table = from_series(plant, series, off_path_rows=20, seed=1)
    for name, rule in BASELINES.items():
        expected = [rule(plant, series, r.timestep, r.soc) for r in table.itertuples()]
        assert table[f"baseline_{name}"].tolist() == expected
        assert table[f"baseline_{name}"].dtype == np.int64


def test_several_series_become_one_table_as_the_generator_makes_it():
    plant = Plant()
    series = make_series(plant, episodes=3, days=1, seed=5)
    assert [one.name for one in series] == ["duck-5", "noon-6", "peak-7"]
    whole = make_dataset(plant, episodes=3, days=1, seed=5, off_path_rows=4)
    assert from_series(plant, *series, off_path_rows=4, seed=5).equals(whole)


def test_the_shipped_shape_has_stakes():
    # Shipped: 8 on-path and 12 off-path rows an episode; tau 0.05, uniform 0.25.
    table = make_dataset(episodes=18, seed=500, on_path_rows=8, off_path_rows=12)
    reward = boltzmann(table[Q4].to_numpy())
    assert reward.max(1).mean() >= 0.68
    assert reward.mean(0).max() <= 0.47
    share = np.bincount(table.optimal_action, minlength=4) / len(table)
    assert share.min() >= 0.03


def test_a_users_series_becomes_a_table(shared_data):
    path = shared_data / "tes/exogenous/dynamic_co2_factor_hourly_3day_0602_to_0604.csv"
    table = from_series(Plant(), read_series(path))
    assert len(table) == 30
    assert table.timestamp[0] == "2025-06-02T08:00:00"


def test_a_series_of_one_day_or_a_start_outside_the_tank_is_refused():
    series = generate("duck", 1, 0)
    day = Series(series.time[:24], series.load_kw[:24], series.carbon[:24], name="short")
    with pytest.raises(DataError, match="short: one day only"):
        make_rows(Plant(), day)
    morning = Series(series.time[:30], series.load_kw[:30], series.carbon[:30], name="cut")
    with pytest.raises(DataError, match="cut: a decision hour is missing"):
        make_rows(Plant(), morning)
    with pytest.raises(ConfigError, match="start_soc"):
        make_rows(Plant(), series, start_soc=301)
    with pytest.raises(ConfigError, match="off_path"):
        make_rows(Plant(), series, off_path=-1)
    with pytest.raises(ConfigError, match="episodes"):
        make_dataset(episodes=0)
