"""What figures hold, number for number, of the small run made by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_lab import bare_run, evaluation, small_run, write_json

from gptoss_tools.report import curves, decisions, heldout, loop, maps
from gptoss_tools.report.collect import collect
from gptoss_tools.report.figures import sections
from gptoss_tools.report.ranking import policies, ranking
from gptoss_tools.report.scales import value_scale
from gptoss_tools.report.style import levels, line, running_mean, window_for


@pytest.fixture
def record(tmp_path):
    (found,) = collect([small_run(tmp_path / "small")])
    return found


def test_held_out_regret_has_its_band_its_curve_and_a_ring_at_the_best_step(record):
    band, curve, ring = heldout.over_steps([record]).figure["data"]
    assert band["x"] == [0, 2, 4, 4, 2, 0]
    assert band["y"] == [2.5, 1.0, 1.5, 0.5, 0.25, 1.5]  # upper ends, then lower ones backwards
    assert (curve["x"], curve["y"]) == ([0, 2, 4], [2.0, 0.5, 1.0])
    assert curve["customdata"][1] == " (0.250 to 1.00)"
    assert (ring["x"], ring["y"]) == ([2], [0.5])


def test_levels_are_drawn_where_the_tables_are_the_same_and_named_where_they_are_far(tmp_path):
    run = small_run(tmp_path / "run")
    panel = heldout.over_steps(collect([run]))
    found = {note["text"]: note["y"] for note in panel.figure["layout"]["annotations"]}
    assert found == {"uniform": 4.0, "best fixed action": 3.0, "base": 2.0}
    assert panel.figure["layout"]["yaxis"]["range"] == [0, pytest.approx(1.06 * 4)]
    content = evaluation()
    content["regret"]["uniform"] = 40.0  # more than 3 times the best fixed action's 3
    write_json(run / "evaluation" / "evaluation.json", content)
    panel = heldout.over_steps(collect([run]))
    assert "uniform" not in [n["text"] for n in panel.figure["layout"]["annotations"]]
    assert "Far above the chart: uniform 40.0." in panel.note
    write_json(run / "evaluation" / "evaluation.json", {**content, "data": ["other.csv"]})
    assert heldout.over_steps(collect([run])).figure["layout"]["annotations"] == []


def test_policies_are_ranked_with_what_was_drawn_beside_the_greedy_answer(record):
    assert [(p.label, p.regret, p.greedy) for p in ranking([record])] == [
        ("optimum", 0.0, False),
        ("best of 4", 0.25, False),
        ("majority of 4", 0.75, False),
        ("small", 1.0, True),
        ("one draw of 4", 1.25, False),
        ("base", 2.0, False),
        ("night rule", 2.5, False),
        ("uniform", 4.0, False),
    ]
    dots = policies([record]).figure["data"]
    assert dots[3]["error_x"]["array"] == [0.5] and dots[3]["error_x"]["arrayminus"] == [0.5]
    assert "error_x" not in dots[5]  # the base came without an interval


def test_what_several_evaluations_share_is_ranked_once(tmp_path):
    both = collect([small_run(tmp_path / "a"), small_run(tmp_path / "b")])
    names = [policy.label for policy in ranking(both)]
    assert names.count("base") == names.count("uniform") == 1
    assert {"a", "b", "majority of 4, a", "majority of 4, b"} <= set(names)


def test_invalid_answers_are_stacked_in_per_cent(record):
    panel = curves.invalid(record, 0)
    assert [trace["y"] for trace in panel.figure["data"]] == [
        [12.5] * 4,
        [12.5] * 4,
        [0.0] * 4,
        [0.0] * 4,
    ]
    assert {trace["stackgroup"] for trace in panel.figure["data"]} == {"all"}
    assert panel.figure["layout"]["yaxis"]["range"] == [0, pytest.approx(1.08 * 25)]
    assert panel.note == "In the last record 25 %."


def test_actions_stand_beside_how_often_each_is_best(record):
    off, full, *best = curves.actions(record, 0).figure["data"]
    assert (off["y"], full["y"]) == ([25.0] * 4, [50.0] * 4)
    # training's prompts: once action 0 was the best, three times action 1
    assert [bar["y"] for bar in best] == [[25.0], [75.0]]


def test_without_a_completion_log_the_best_shares_are_those_of_the_evaluation(record):
    record.asked = {}
    assert curves.best_shares(record, 2) == ([1 / 3, 2 / 3], "in the held-out rows")


def test_reward_has_its_bounds(record):
    panel = curves.reward([record])
    mean, held_out = panel.figure["data"]
    assert mean["y"] == [0.25, 0.5, 0.75, 1.0] and held_out["x"] == []
    texts = {n["text"]: n["y"] for n in panel.figure["layout"]["annotations"]}
    assert texts == {"best possible": 0.9, "best fixed action": 0.55, "uniform": 0.5}


def test_small_multiples_show_what_was_logged_and_nothing_else(record):
    panels = {panel.id: panel for panel in curves.multiples([record])}
    assert "curve-kl" not in panels  # no KL term, no KL
    (entropy,) = panels["curve-entropy"].figure["data"]
    assert entropy["y"] == [1.0, 0.5, 1 / 3, 0.25]


def test_maps_have_a_line_per_episode_and_day_and_a_column_per_hour(record):
    chosen, best, regret = (panel.figure["data"][0] for panel in maps.maps([record]))
    assert chosen["x"] == [8, 9, 10]
    # row 1 at 8 h and row 2 at 10 h of duck-1 chose 0; noon-2 at 8 h was invalid: K = 2
    assert chosen["z"] == [[0, None, 0], [2, None, None]]
    assert best["z"] == [[0, None, 1], [1, None, None]]
    # regrets 0, 1, 2 in the classes 0, to 1, more
    assert regret["z"] == [[0, None, 1], [2, None, None]]
    assert maps.classes([0.0, 1.0, 2.0]) == [1.0]
    crosses = maps.maps([record])[0].figure["layout"]["annotations"]
    assert [(note["x"], note["y"]) for note in crosses] == [(8, 1)]


def test_every_action_has_a_step_of_colour_of_its_own(record):
    trace = maps.maps([record])[0].figure["data"][0]
    assert (trace["zmin"], trace["zmax"]) == (-0.5, 2.5)
    third = pytest.approx(1 / 3)
    assert trace["colorscale"] == [
        [0.0, "@ramp:0"],
        [third, "@ramp:0"],
        [third, "@ramp:1"],
        [pytest.approx(2 / 3), "@ramp:1"],
        [pytest.approx(2 / 3), "@invalid"],
        [1.0, "@invalid"],
    ]


def test_an_hour_with_several_rows_shows_the_most_frequent_action_and_the_mean_regret(record):
    extra = {**record.decisions[1], "action": 1, "regret": 0.0}
    record.decisions += [extra, extra]
    chosen, _, regret = (panel.figure["data"][0] for panel in maps.maps([record]))
    assert chosen["z"][0][2] == 1
    assert "regret 0.333 (3 rows)" in regret["text"][0][2]  # (1 + 0 + 0) / 3


def test_of_very_many_days_the_costliest_are_shown():
    rows = [
        {"episode": f"e{i}", "timestamp": "2026-06-01T08:00:00", "optimal_action": 0, "regret": i}
        for i in range(maps.MOST_LINES + 5)
    ]
    calendar = maps.read_calendar(rows)
    assert calendar.left_out == 5 and calendar.days[0] == ("e5", "2026-06-01")


def test_confusion_is_shaded_by_row_and_labelled_with_counts(record):
    figure = decisions.confusion(record, 0).figure
    assert figure["data"][0]["z"] == [[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]
    dot = "\N{MIDDLE DOT}"
    assert [n["text"] for n in figure["layout"]["annotations"]] == ["1", dot, dot, "1", dot, "1"]
    assert figure["layout"]["yaxis"]["ticktext"] == ["off  100 %", "full  0 %"]


def test_regret_stands_against_the_gap_to_the_second_best(record):
    diagonal, answered, invalid = decisions.stakes(record, 0).figure["data"]
    # gaps 2-1, 2-1 and 0-(-2); regrets 0, 1 and, for the invalid one, 2
    assert (answered["x"], answered["y"]) == ([1.0, 1.0], [0.0, 1.0])
    assert (invalid["x"], invalid["y"]) == ([2.0], [2.0])
    assert diagonal["x"] == diagonal["y"] == [0.0, 2.0]


def test_infeasible_and_unknown_values_open_no_gap(record):
    record.decisions = [{**record.decisions[0], "q": [1.0, "-inf", None]}]
    assert decisions.stakes(record, 0).figure is None


def test_calibration_is_shown_with_its_bins_in_per_cent(record):
    panel = decisions.calibration(record, 0)
    _, bins = panel.figure["data"]
    assert (bins["x"], bins["y"]) == ([50.0, 100.0], [100.0, 75.0])
    assert bins["marker"]["size"][1] == 24.0  # 7 + 17 * sqrt(4 / 4)
    assert panel.note.startswith("Expected calibration error 25 %. Votes lie 12 %")


def test_the_strip_holds_every_hour_and_the_end_of_the_last(record):
    panel = loop.strip([record])
    load, carbon, *policy_traces = panel.figure["data"]
    hours = ["2026-06-01T08:00:00", "2026-06-01T09:00:00", "2026-06-01T10:00:00"]
    assert (load["x"], load["y"]) == (hours, [10.0, 20.0, 20.0])
    assert carbon["y"] == [0.25, 0.25, 0.25]
    optimum, _, own, output, unmet = policy_traces
    assert optimum["y"] == [20.0, 40.0, 30.0] and own["y"] == [20.0, 30.0, 5.0]
    assert output["y"] == [100.0, 0.0, 0.0] and output["line"]["shape"] == "hv"
    assert (unmet["x"], unmet["customdata"]) == ([hours[1]], [2.0])
    assert [label for label, _ in panel.choices] == ["duck-1"]


def test_of_very_many_series_the_first_are_shown(record):
    hours = record.closed_loop
    record.closed_loop = [{**hour, "series": f"s{i}"} for i in range(30) for hour in hours]
    panel = loop.strip([record])
    assert len(panel.choices) == 24 and "24 of 30 series" in panel.note


def test_the_closed_loop_table_says_how_far_above_the_optimum(record):
    table = loop.summary([record])
    # 110 / 100 - 1 = 10 %; the optimum costs least and so comes first
    assert [row[:3] for row in table.rows] == [
        ["optimum", "100", "\N{EN DASH}"],
        ["small", "110", "+10 %"],
    ]
    assert table.marked == {1}


def test_runs_that_drove_one_series_share_its_figure(tmp_path):
    both = collect([small_run(tmp_path / "a"), small_run(tmp_path / "b")])
    panel = loop.strip(both)
    runs = [t["meta"]["run"] for t in panel.figure["data"] if "run" in t.get("meta", {})]
    assert len(panel.choices) == 1 and set(runs) == {0, 1}


def test_without_anything_every_section_says_which_command_fills_it(tmp_path):
    run = bare_run(tmp_path / "run")
    for section in sections(collect([run])):
        said = [*section.missing, *(panel.missing for panel in section.panels)]
        assert any("gptoss " in sentence for sentence in said), section.id
        assert all(panel.figure is None for panel in section.panels), section.id


def test_a_scale_is_logarithmic_only_where_values_span_a_lot():
    even = value_scale([0.0, 1.0, 20.0])
    assert not even.logarithmic and even.put(0.0) == 0.0
    assert even.axis["range"] == [0, pytest.approx(21.2)]
    wide = value_scale([0.0, 0.02, 3.0])
    # decades 0.01, 0.1, 1, 10; zero stands one decade below the lowest
    assert wide.axis["tickvals"] == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert wide.axis["ticktext"] == ["0", "0.01", "0.1", "1", "10"]
    assert wide.put(0.0) == pytest.approx(0.001) and wide.put(3.0) == 3.0
    assert value_scale([1e-9, 1.0]).axis["ticktext"][0] == "\N{ALMOST EQUAL TO} 0"


def test_a_level_keeps_its_name_clear_of_the_curve():
    curve = line([0, 50, 100], [10.0, 5.0, 0.0], "@run0")
    free, crowded = (levels([(y, "x")], [curve], 100)["annotations"][0]["x"] for y in (8.0, 0.0))
    assert free == 1  # the curve ends far below
    assert crowded < 1  # the curve ends on the line


@given(st.lists(st.floats(-1e6, 1e6), max_size=200))
def test_a_running_mean_stays_within_its_values_and_keeps_their_number(values):
    means = running_mean(values, window_for(len(values)))
    assert len(means) == len(values)
    slack = 1e-9 * max((abs(v) for v in values), default=0)
    assert all(min(values) - slack <= mean <= max(values) + slack for mean in means)


def test_a_running_mean_of_three_takes_fewer_at_the_ends():
    assert running_mean([0.0, 3.0, 6.0, 0.0], 3) == [1.5, 3.0, 3.0, 3.0]
    assert [window_for(n) for n in (0, 39, 40, 200)] == [1, 1, 3, 11]
    assert not math.isnan(running_mean([1.0], 11)[0])
