"""How a report speaks: numbers, the headline, cards, what differs between runs."""

from __future__ import annotations

import pytest
from report_lab import bare_run, evaluation, small_run, write_json

from gptoss_tools.report import headline, tables, worst
from gptoss_tools.report.collect import collect
from gptoss_tools.report.words import between, count_of, percent, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (-0.5, "\N{MINUS SIGN}0.500"),
        (99.96, "100"),
        (1234.6, "1\N{THIN SPACE}235"),
        (0.000123, "0.000123"),
        (1.5e-6, "1.5e\N{MINUS SIGN}06"),
        (0.0, "0"),
        (None, "\N{EN DASH}"),
        (float("inf"), "\N{INFINITY}"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert short(value) == text


def test_shares_intervals_and_counts():
    assert [percent(v) for v in (0, 0.004, 0.0995, 0.5, None)] == [
        "0 %",
        "0.4 %",
        "10 %",
        "50 %",
        "\N{EN DASH}",
    ]
    assert between([0.1, 0.25]) == "0.100 to 0.250" and between(None) == between([0.1, None]) == ""
    assert (
        count_of(1, "episode") == "1 episode" and count_of(1200, "row") == "1\N{THIN SPACE}200 rows"
    )


@pytest.mark.parametrize(
    ("difference", "sentence", "tone"),
    [
        # the file holds policy minus base; the sentence speaks of the gain
        (
            {"mean": -0.12, "ci95": [-0.17, -0.08]},
            "Better than its base by 0.120 (0.0800 to 0.170), n = 3 decisions in 2 episodes.",
            "good",
        ),
        (
            {"mean": 0.5, "ci95": [0.25, 0.75]},
            "Worse than its base by 0.500 (0.250 to 0.750), n = 3 decisions in 2 episodes.",
            "bad",
        ),
        (
            {"mean": -0.1, "ci95": [-0.3, 0.2]},
            "Not told apart from its base: gain 0.100 (\N{MINUS SIGN}0.200 to 0.300), "
            "n = 3 decisions in 2 episodes.",
            "open",
        ),
        (
            {"mean": -0.1, "ci95": None},
            "0.100 below its base, with no interval; n = 3 decisions in 2 episodes.",
            "open",
        ),
        (
            None,
            "Held-out regret 1.00, not compared with its base; n = 3 decisions in 2 episodes.",
            "open",
        ),
    ],
)
def test_the_headline_says_whether_the_difference_leaves_zero_out(
    tmp_path, difference, sentence, tone
):
    run, content = small_run(tmp_path / "run"), evaluation()
    content["regret"]["difference"] = difference
    write_json(run / "evaluation" / "evaluation.json", content)
    found = headline.verdict(collect([run])[0])
    assert (found.sentence, found.tone) == (sentence, tone)
    assert found.facts == "openai/gpt-oss-20b, finished, 4 of 4 steps, 2026-11-21 09:00"


def test_cards_come_from_the_evaluation(tmp_path):
    cards = headline.cards(collect([small_run(tmp_path / "run")])[0])
    assert [(c.name, c.value, c.detail) for c in cards] == [
        ("Held-out regret", "1.00", "0.500 to 1.50; base 2.00"),
        ("Score", "75.0", "60.0 to 90.0; 100 is optimal, 0 is dice"),
        ("Best action found", "33 %", "0 % to 100 %; near best 50 %"),
        ("Invalid answers", "33 %", "1 of 3"),
        ("kgCO2 in closed loop", "110", "optimum 100 (+10 %); base 150; 2.00 kWh unmet"),
    ]


def test_no_invalid_answer_in_n_still_leaves_an_upper_bound(tmp_path):
    run, content = small_run(tmp_path / "run"), evaluation()
    content["invalid"] = {"total": 0.0, "n": 144, "upper95": 3 / 144}
    write_json(run / "evaluation" / "evaluation.json", content)
    card = headline.cards(collect([run])[0])[3]
    assert (card.value, card.detail) == ("0 %", "none in 144, so below 2.1 %")


def test_without_an_evaluation_cards_come_from_training(tmp_path):
    run = small_run(tmp_path / "run")
    (run / "evaluation" / "evaluation.json").unlink()
    record = collect([run])[0]
    cards = {card.name: card for card in headline.cards(record)}
    assert cards["Held-out regret"].value == "0.500"
    assert cards["Held-out regret"].detail == "0.250 to 1.00; while training, step 2"
    assert cards["Invalid answers"].value == "25 %"
    assert headline.verdict(record).sentence == f"no evaluation yet: gptoss evaluate {run}"


def test_runs_are_compared_side_by_side(tmp_path):
    one, other = small_run(tmp_path / "a"), bare_run(tmp_path / "b")
    table = headline.comparison(collect([one, other]))
    assert table.head == ["", "a", "b"]
    assert table.rows[0] == ["Held-out regret", "1.00\n0.500 to 1.50; base 2.00", "\N{EN DASH}"]


def test_only_what_differs_is_in_the_table_of_differences(tmp_path):
    paths = [bare_run(tmp_path / "a", lora_r=4, output_dir="a")]
    paths.append(bare_run(tmp_path / "b", lora_r=16, output_dir="b"))
    records = collect(paths)
    table = tables.differences(records)
    assert table.rows == [["lora_r", "4", "16"]]  # folders differ always and mean nothing
    whole = tables.settings(records)
    marked = {whole.rows[i][0] for i in whole.marked}
    assert marked == {"lora_r", "output_dir"}
    assert tables.differences(records[:1]) is None


def test_settings_come_with_their_origins_where_these_were_written_down(tmp_path):
    old, new = bare_run(tmp_path / "old"), bare_run(tmp_path / "new")
    config = collect([new])[0].config
    write_json(new / "config.json", {**config, "origins": {"lora_r": "--lora-r"}})
    assert tables.settings(collect([old])).head == ["setting", "value"]
    shown = tables.settings(collect([new]))
    assert shown.head == ["setting", "value", "origin"]
    assert ["lora_r", "4", "--lora-r"] in shown.rows


def test_the_worst_decisions_are_split_by_channel_and_named(tmp_path):
    bad, wrong = worst.worst_rows(collect([small_run(tmp_path / "run")]))
    assert (bad.chosen, bad.best, bad.reason, bad.lost) == ("invalid", "full", "truncated", "2.00")
    assert bad.texts == [("analysis", "So long")]
    assert wrong.texts == [("analysis", "Hm."), ("final", "[0]")]
    assert (wrong.chosen, wrong.best, wrong.hour, wrong.phase) == ("off", "full", "10", "day")
    assert [(v.name, v.value, v.chosen, v.best) for v in wrong.values] == [
        ("off", "1.00", True, False),
        ("full", "2.00", False, True),
    ]


def test_endless_texts_are_cut_with_a_note(tmp_path):
    record = collect([small_run(tmp_path / "run")])[0]
    record.worst[0]["prompt"] = "x" * (worst.LONGEST + 5)
    shown = worst.worst_rows([record])[0].prompt
    assert shown.endswith("[5 more characters are in decisions.jsonl]")
