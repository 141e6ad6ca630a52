"""Rules by hand: three levels of 0, 50 and 100 kW, COP 4, a tank of 300 kWh, a load of 40 kW."""

import re
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.errors import ConfigError
from gptoss_tools.tes.baselines import BASELINES, random_rule
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.prompts import write_prompt
from gptoss_tools.tes.series import Series, generate

PLANT = Plant(levels=(0, 0.5, 1), decision_hours=tuple(range(24)))


def flat(load=40.0, carbon=0.4):
    start = datetime(2025, 7, 1)
    time = tuple(start + timedelta(hours=h) for h in range(48))
    return Series(time, np.full(48, load), np.full(48, carbon), name="flat")


def chosen(name, t, soc, plant=PLANT, **series):
    return BASELINES[name](plant, flat(**series), t, soc)


@pytest.mark.parametrize(
    ("soc", "level"),
    [
        (100.0, 0),  # the tank serves the load at no CO2
        (10.0, 1),  # off leaves 30 kWh unmet: 300 kg; 50 kW emit 50 / 4 * 0.4 = 5 kg
        (39.4, 1),  # off costs 0.6 * 10 = 6 kg, still more than 5
        (39.6, 0),  # off costs 0.4 * 10 = 4 kg, less than 5
    ],
)
def test_greedy_weighs_this_hours_penalty_against_this_hours_carbon(soc, level):
    assert chosen("greedy", 3, soc) == level


def test_greedy_takes_the_lowest_of_levels_that_cost_the_same():
    assert chosen("greedy", 3, 100.0, carbon=0.0) == 0
    assert chosen("greedy", 3, 10.0, carbon=0.0) == 1  # 1 and 2 meet the load and emit nothing
    rounded = float(np.nextafter(40.0, 0))  # 7e-15 kWh short of the load is not unmet load
    assert chosen("greedy", 3, rounded, carbon=0.0) == 0


@pytest.mark.parametrize(("load", "level"), [(0, 0), (40, 1), (50, 1), (50.1, 2), (120, 2)])
def test_load_following_covers_the_load_as_if_there_were_no_tank(load, level):
    assert {chosen("load_following", 3, soc, load=load) for soc in (0.0, 300.0)} == {level}


@pytest.mark.parametrize(
    ("name", "filling"), [("solar", range(9, 14)), ("night", (22, 23, 0, 1, 2, 3, 4, 5))]
)
def test_solar_and_night_fill_the_tank_in_their_hours_and_else_only_serve(name, filling):
    for hour in range(24):
        # lowest: 100 kWh serve 40, 10 kWh do not. highest: 100 + 100 - 40 <= 300
        expected = (2, 2) if hour in filling else (0, 1)
        assert (chosen(name, hour, 100.0), chosen(name, hour, 10.0)) == expected, hour


def test_filling_ends_where_cold_would_be_wasted_unless_the_load_needs_it():
    assert chosen("solar", 10, 240.0) == 2  # 240 + 100 - 40 = 300 fits
    assert chosen("solar", 10, 241.0) == 1  # 301 does not, 241 + 50 - 40 = 251 does
    assert chosen("solar", 10, 291.0) == 0  # 301 again
    small = Plant(levels=(0, 0.5, 1), capacity_kwh=20, decision_hours=tuple(range(24)))
    # 50 kW leave 60 - 50 = 10 kWh unmet; 100 kW waste 100 - 60 - 20 = 20 kWh
    assert chosen("solar", 10, 0.0, plant=small, load=60.0) == 2
    assert chosen("solar", 3, 0.0, plant=small, load=60.0) == 2


def test_a_load_beyond_the_plant_gets_all_it_can_give():
    for name in BASELINES:
        assert chosen(name, 3, 0.0, load=150.0) == 2


states = {
    "profile": st.sampled_from(["duck", "noon", "peak"]),
    "seed": st.integers(0, 50),
    "t": st.integers(8, 17),
    "share": st.floats(0, 1),
    "loss": st.sampled_from([0.0, 0.02]),
}


@settings(max_examples=60, deadline=None)
@given(**states)
def test_plan_does_what_the_last_line_of_the_prompt_says(profile, seed, t, share, loss):
    plant, series = Plant(loss=loss), generate(profile, 1, seed)
    text = write_prompt(plant, series, t, share * 300)
    now, low, high = re.search(r"run now: (\w+).*levels: (\d) to (\d)", text).groups()
    expected = int(high) if now == "yes" else int(low)
    assert BASELINES["plan"](plant, series, t, share * 300) == expected


@settings(max_examples=60, deadline=None)
@given(**states)
def test_every_rule_keeps_its_promise_in_any_state(profile, seed, t, share, loss):
    plant, series, soc = Plant(loss=loss), generate(profile, 1, seed), share * 300
    step = plant.step(soc, np.arange(4), series.load_kw[t], series.carbon[t])
    choice = {name: rule(plant, series, t, soc) for name, rule in BASELINES.items()}
    assert step.reward[choice["greedy"]] == pytest.approx(step.reward.max(), abs=1e-12)
    for name in ("night", "solar", "plan", "load_following"):
        assert step.unmet[choice[name]] <= step.unmet.min() + 1e-9, name
    for name in ("solar", "plan"):
        assert choice[name] >= choice["night"]  # no night hour is decided: the least that serves


def test_dice_fall_evenly_and_by_seed_series_and_hour_alone():
    plant, series = Plant(), generate("duck", 30, 3)
    drawn = np.array(
        [[random_rule(s)(plant, series, t, 0.0) for t in range(720)] for s in range(4)]
    )
    shares = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    # 2880 draws: standard deviation sqrt(0.25 * 0.75 / 2880) = 0.008
    assert np.abs(shares - 0.25).max() < 0.04
    agree = (drawn[0] == drawn[1]).mean()  # of two independent rows a quarter, +- 0.016
    assert abs(agree - 0.25) < 0.08
    assert random_rule(2)(plant, series, 9, 123.0) == drawn[2, 9]
    other = Series(series.time, series.load_kw, series.carbon, name="other")
    assert any(random_rule(0)(plant, other, t, 0.0) != drawn[0, t] for t in range(20))
    with pytest.raises(ConfigError, match="seed must be 0 or more"):
        random_rule(-1)
