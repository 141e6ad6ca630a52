"""The prompt says what is known, in one fixed and short form."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from gptoss_tools.errors import DataError
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.prompts import board, outlook, write_prompt
from gptoss_tools.tes.series import Series, generate


def two_days():
    hours = np.arange(48)
    working = Plant().decides(hours % 24)
    carbon = np.where(working, 0.3 + (hours % 24) / 100, 0.5)  # 0.38 at 8 h to 0.47 at 17 h
    carbon[24:] += 0.1
    start = datetime(2025, 7, 1)
    time = tuple(start + timedelta(hours=int(h)) for h in hours)
    return Series(time, np.where(working, 40.0, 0.0), carbon, name="two")


def test_the_board_by_hand():
    plant = Plant()
    view = outlook(plant, two_days(), 14)  # 14, 15, 16, 17 h: 160 kWh
    facts = board(plant, view, soc=25.0)
    assert facts.full_hours == 2  # (160 - 25) / 100 rounded up
    assert facts.cleaner_hours == 0  # carbon rises to the end of the day
    assert facts.on_plan
    assert facts.lowest == 1  # off leaves 15 kWh unmet, 33.3 kW does not
    assert facts.highest == 3
    # tomorrow's five lowest: mean of 0.48 .. 0.52 = 0.50 against 0.44 now, 14 % above
    assert view.next_carbon == pytest.approx(0.50)
    assert facts.tomorrow == "dirtier"
    full = board(plant, view, soc=300.0)
    assert (full.full_hours, full.on_plan) == (0, False)
    assert (full.lowest, full.highest) == (0, 1)  # 300 + 33.3 - 40 fits, 300 + 66.7 - 40 does not


def test_the_prompt_carries_every_fact_and_the_output_rule():
    text = write_prompt(Plant(), two_days(), 14, 25.4)
    system, user = text.split("\nuser: ")
    assert system.startswith("system: ")
    assert "exactly [k]" in system
    for fact in (
        "Levels 0 to 3 give 0, 33, 67, 100 kW",
        "Hour 14: load 40 kW, carbon 440 g, tank 025 of 300 kWh",
        "Later 120 kWh from 440 g, tomorrow 400 kWh from 500 g",
        "full hours needed 2, cleaner hours left 0, run now: yes",
        "Tomorrow: dirtier. Fitting levels: 1 to 3.",
    ):
        assert fact in user
    assert len(text.split()) <= 90
    assert "<|" not in text


def test_any_number_of_levels_is_written():
    text = write_prompt(Plant(levels=(0, 0.5)), two_days(), 9, 10.0)
    assert "Levels 0 to 1 give 0, 50 kW" in text


def test_the_same_state_gives_the_same_text_and_other_states_other_texts():
    plant, series = Plant(), generate("duck", 2, 1)
    texts = [write_prompt(plant, series, t, soc) for t in (9, 13) for soc in (20.0, 220.0)]
    assert texts == [write_prompt(plant, series, t, soc) for t in (9, 13) for soc in (20.0, 220.0)]
    assert len(set(texts)) == 4


def test_no_prompt_at_night_or_without_a_tomorrow():
    plant, series = Plant(), two_days()
    with pytest.raises(DataError, match="not a decision hour"):
        write_prompt(plant, series, 3, 10.0)
    with pytest.raises(DataError, match="day after 2025-07-02"):
        write_prompt(plant, series, 24 + 9, 10.0)
