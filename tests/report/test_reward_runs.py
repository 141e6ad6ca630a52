"""A run on a table without values: the report and the list of runs speak of rewards."""

from __future__ import annotations

import plotly.graph_objects as go
from report_lab import bare_run, small_run, training_record, write_json, write_lines
from test_page import painted

from gptoss_tools.core.overview import list_runs
from gptoss_tools.report.collect import collect
from gptoss_tools.report.figures import sections
from gptoss_tools.report.headline import cards, verdict
from gptoss_tools.report.page import write_report
from gptoss_tools.report.words import DASH


def section(mean: float, gain: float, low: float, high: float, **more) -> dict:
    difference = {"mean": gain, "ci95": [low, high], "n": 4}
    base = {"base": mean - gain, "difference": difference}
    return {"mean": mean, "ci95": [mean - 0.5, mean + 0.5], "unknown": 1, **base, **more}


def reward_run(folder, evaluated: bool = True, low: float = 0.5):
    """Three steps, measured before and after, and an evaluation of five answers, all by hand."""
    bare_run(folder, reward=["format", "exact"], reward_weights=[1.0, 2.0])
    records = [training_record(step) for step in (1, 2, 3)]
    records = [{n: v for n, v in r.items() if not n.startswith("action_")} for r in records]
    held = [
        {"step": step, "segment": 1, "eval_reward": reward, "eval_reward_low": 0.25}
        for step, reward in ((0, -1.0), (2, 1.5), (3, 1.0))
    ]
    write_lines(folder / "metrics.jsonl", sorted([*records, *held], key=lambda r: r["step"]))
    if evaluated:
        parts = {
            "format": section(2.0, 1.0, 0.5, 1.5, weight=1.0),
            "exact": section(0.25, 0.25, 0.0, 0.5, weight=2.0),
        }
        content = {"format": 1, "n_rows": 5, "n_episodes": 5, "regret": None, "rewards": parts}
        content |= {"reward": section(2.5, 1.0, low, 1.5), "policies": [], "by_phase": {}}
        content |= {"invalid": {"total": 0.2, "n": 5, "upper95": None}}
        write_json(folder / "evaluation" / "evaluation.json", content)
        row = {"row": 1, "prompt": "P", "reason": "truncated", "reward": None, "completion": "x"}
        write_lines(folder / "evaluation" / "decisions.jsonl", [row, {**row, "reason": "ok"}])
    return folder


def test_the_verdict_is_about_rewards_where_more_is_better(tmp_path):
    (better,) = collect([reward_run(tmp_path / "a")])
    said = verdict(better).sentence
    assert said == "Better than its base by 1.00 (0.500 to 1.50), n = 5 answers in 5 episodes."
    assert verdict(better).tone == "good"
    (unsure,) = collect([reward_run(tmp_path / "b", low=-0.5)])
    assert "Not told apart from its base: gain 1.00 (" in verdict(unsure).sentence
    shown = {card.name: card for card in cards(better)}
    assert shown["Held-out reward"].value == "2.50"
    assert shown["Held-out reward"].detail == "2.00 to 3.00; base 1.50"
    assert "Held-out regret" not in shown


def test_without_an_evaluation_the_best_step_is_the_one_that_earned_most(tmp_path):
    (record,) = collect([reward_run(tmp_path / "a", evaluated=False)])
    (card,) = [card for card in cards(record) if card.name == "Held-out reward"]
    assert card.value == "1.50" and "step 2" in card.detail


def test_sections_about_decisions_are_left_out(tmp_path):
    alone = collect([reward_run(tmp_path / "a")])
    made = sections(alone)
    assert {section.id for section in made} == {"invalid", "reward", "health"}
    (table,) = next(section for section in made if section.id == "reward").tables
    assert table.rows[0][:3] == ["sum", DASH, "2.50"]
    assert [row[0] for row in table.rows] == ["sum", "format", "exact"]
    both = collect([tmp_path / "a", small_run(tmp_path / "decisions")])
    ids = [section.id for section in sections(both)]
    assert ids[:3] == ["regret", "invalid", "actions"]
    for section in [*made, *sections(both)]:
        for panel in section.panels:
            if panel.figure:
                go.Figure(painted(panel.figure))
    page = write_report([tmp_path / "a"]).read_text(encoding="utf-8")
    assert "Held-out answers, by reward" in page


def test_runs_are_listed_with_their_reward_where_one_has_no_regret(tmp_path, gptoss):
    reward_run(tmp_path / "runs" / "a", evaluated=False)
    (facts,) = list_runs([tmp_path / "runs"])
    assert (facts.regret, facts.reward) == (None, 1.5)
    reward_run(tmp_path / "runs" / "b")
    small_run(tmp_path / "runs" / "c")
    rows = {facts.name: facts for facts in list_runs([tmp_path / "runs"])}
    assert (rows["b"].reward, rows["c"].reward, rows["c"].regret) == (2.5, None, 1.0)
    code, out, _ = gptoss("runs", str(tmp_path / "runs"))
    assert code == 0 and "reward" in out.splitlines()[0]
    assert "reward" not in gptoss("runs", str(tmp_path / "runs" / "c"))[1].splitlines()[0]
