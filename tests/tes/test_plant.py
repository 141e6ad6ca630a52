"""The plant's step, by hand and as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.errors import ConfigError
from gptoss_tools.tes.plant import Plant

socs = st.floats(0, 300)
loads = st.floats(0, 150)
actions = st.integers(0, 3)


def test_surplus_charges_the_tank_and_is_paid_in_electricity():
    # 100 kW serve 40 kW, 60 kWh fill the tank; 100 / 4 = 25 kWh of electricity at 0.3 kg = 7.5 kg
    step = Plant().step(150.0, 3, 40.0, 0.3)
    assert step.next_soc == pytest.approx(210)
    assert step.electricity == pytest.approx(25)
    assert step.emitted == pytest.approx(7.5)
    assert step.unmet == 0
    assert step.reward == pytest.approx(-7.5 / 6)


def test_shortfall_empties_the_tank_and_the_rest_is_penalised():
    # 33.33 kW and the 10 kWh stored leave 60 - 43.33 = 16.67 kWh unmet: 166.7 kg of penalty
    step = Plant().step(10.0, 1, 60.0, 0.4)
    assert step.next_soc == pytest.approx(0)
    assert step.unmet == pytest.approx(60 - 100 / 3 - 10)
    emitted = 100 / 3 / 4 * 0.4
    assert step.reward == pytest.approx(-(emitted + 10 * (50 - 100 / 3)) / 6)


def test_a_full_tank_wastes_the_surplus():
    step = Plant().step(290.0, 3, 30.0, 0.2)
    assert step.next_soc == pytest.approx(300)
    assert step.electricity == pytest.approx(25)


def test_loss_is_taken_before_the_hour():
    # 200 kWh lose 1 %, then 40 kWh are drawn
    assert Plant(loss=0.01).step(200.0, 0, 40.0, 0.2).next_soc == pytest.approx(158)


@given(socs, actions, loads, st.floats(0, 0.05))
def test_energy_is_conserved_or_wasted_and_stays_in_the_tank(soc, action, load, loss):
    plant = Plant(loss=loss)
    step = plant.step(soc, action, load, 0.3)
    assert -1e-9 <= step.next_soc <= plant.capacity_kwh + 1e-9
    supplied = load - step.unmet
    made = plant.levels[action] * plant.rated_kw
    wasted = soc * (1 - loss) + made - supplied - step.next_soc
    assert wasted >= -1e-9
    if wasted > 1e-9:
        assert step.next_soc == pytest.approx(plant.capacity_kwh)
    assert step.unmet >= 0


@given(st.lists(st.tuples(socs, actions, loads), min_size=1, max_size=8))
def test_a_batch_steps_like_its_members(cases):
    plant = Plant()
    soc, action, load = (np.array(x) for x in zip(*cases, strict=True))
    batch = plant.step(soc, action, load, 0.25)
    for i, case in enumerate(cases):
        single = plant.step(*case, 0.25)
        assert [float(x[i]) for x in batch] == [float(x) for x in single]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"levels": (0.0,)}, "levels"),
        ({"levels": (0.2, 1.0)}, "levels"),
        ({"levels": (0.0, 0.5, 0.5)}, "levels"),
        ({"levels": (0.0, 1.5)}, "levels"),
        ({"cop": 0.0}, "cop"),
        ({"capacity_kwh": -1.0}, "capacity_kwh"),
        ({"rated_kw": float("nan")}, "rated_kw"),
        ({"loss": 1.0}, "loss"),
        ({"penalty": -1.0}, "penalty"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"decision_hours": ()}, "decision_hours"),
        ({"decision_hours": (9, 8)}, "decision_hours"),
        ({"decision_hours": (24,)}, "decision_hours"),
    ],
)
def test_a_wrong_constant_is_named(wrong, field):
    with pytest.raises(ConfigError, match=field):
        Plant(**wrong)
