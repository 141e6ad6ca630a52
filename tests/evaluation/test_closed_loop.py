"""A policy's mistakes along its own way add up to what it loses, whoever drives."""

import itertools
import json
from datetime import timedelta

import numpy as np
import pytest

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.evaluation.closed_loop import Question, decisions, drive, read_all
from gptoss_tools.tes.baselines import BASELINES
from gptoss_tools.tes.dataset import make_series, solve_series
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.prompts import write_prompt
from gptoss_tools.tes.series import Series, generate, read_series

RULES = ["optimal", *BASELINES, "random"]


def scripted(question):
    """Answer from the text alone, and not at all at one hour in five."""
    number = sum(map(ord, question.prompt)) + question.t
    return (None, "truncated") if number % 5 == 0 else (number % 4, "ok")


def scripted_batch(questions):
    return [scripted(question) for question in questions]


def late(series, hours, name):
    """The same series with its first hours cut off."""
    return Series(series.time[hours:], series.load_kw[hours:], series.carbon[hours:], name)


def uneven():
    """Series of unequal length that start at unequal hours, one in the middle of decisions."""
    return [
        generate("duck", 3, 1),
        late(generate("noon", 2, 2), 11, "late"),
        late(generate("peak", 1, 3), 3, "early"),
        generate("duck", 1, 4),
        generate("noon", 2, 5),
    ]


@pytest.mark.parametrize("plant", [Plant(), Plant(levels=(0, 0.3, 0.77, 1), loss=0.004)])
def test_regrets_along_the_way_sum_to_the_loss_for_everyone(plant):
    result = drive(plant, uneven(), 150.0, {"policy": scripted_batch}, random_seeds=3)
    assert list(result.figures) == ["policy", *RULES]
    for name, own in result.figures.items():
        loss, regret_sum = own[:, 5], own[:, 6]
        assert np.abs(regret_sum - loss).max() <= 1e-9, name
        assert loss.min() >= -1e-9, name
    lines = list(result.hours())
    for policy in result.summary()["closed_loop"]["policies"]:
        if policy["name"] != "random":  # its lines are of the first rollout, its sum of all
            total = sum(line["regret"] for line in lines if line["policy"] == policy["name"])
            assert total / 5 == pytest.approx(policy["regret_sum"], abs=1e-9)


def test_the_optimum_earns_the_best_value_at_the_start_and_nobody_costs_less():
    plant, series = Plant(), uneven()
    result = drive(plant, series, 120.0, {"policy": scripted_batch}, random_seeds=2)
    for i, one in enumerate(series):
        best = solve_series(plant, one).solution.q(0, 120.0).max()
        # cost_kg = -score * reward_scale, and the optimum's score is max Q at the start
        assert result.figures["optimal"][i, 4] == pytest.approx(-6.0 * best, abs=6e-9)
    for own in result.figures.values():
        assert (own[:, 4] >= result.figures["optimal"][:, 4] - 1e-8).all()


def test_kilograms_are_counted_from_the_hours_by_hand():
    plant, series = Plant(), [generate("duck", 1, 7)]
    odd_hours = {"policy": lambda qs: [(3 * (q.t % 2), "ok") for q in qs]}  # off at 8, full at 9
    result = drive(plant, series, 0.0, odd_hours)
    summary = result.summary()
    lines = [line for line in result.hours() if line["policy"] == "policy"]
    assert len(lines) == 18  # the episode closes at 18:00
    assert sum(line["reason"] != "off" for line in lines) == 10
    emitted = sum(line["output_kw"] / 4 * line["carbon"] for line in lines)
    unmet = sum(line["unmet_kwh"] for line in lines)
    # a kWh left is worth the mean of tomorrow's five lowest decision hours / COP
    credit = lines[-1]["soc_after"] * np.sort(series[0].carbon[24 + 8 : 24 + 18])[:5].mean() / 4
    [policy] = [p for p in summary["closed_loop"]["policies"] if p["name"] == "policy"]
    assert policy["emitted_kg"] == pytest.approx(emitted, abs=1e-12)
    assert unmet >= series[0].load_kw[8] > 0  # nothing in the tank at 8
    assert policy["unmet_kwh"] == pytest.approx(unmet, abs=1e-12)
    assert policy["kg_co2"] == pytest.approx(emitted - credit, abs=1e-12)
    assert policy["cost_kg"] == pytest.approx(emitted - credit + 10 * unmet, abs=1e-9)
    assert policy["final_kwh"] == lines[-1]["soc_after"]
    for now, then in itertools.pairwise(lines):
        assert now["soc_after"] == then["soc"]


def test_an_invalid_answer_runs_the_worst_level_and_keeps_its_reason():
    plant, series = Plant(), generate("peak", 2, 8)
    never = drive(plant, [series], 150.0, {"policy": lambda qs: [(None, "no_final")] * len(qs)})
    solution = solve_series(plant, series).solution
    lines = [line for line in never.hours() if line["policy"] == "policy"]
    for line in lines:
        if line["reason"] == "off":
            assert (line["action"], line["regret"]) == (0, 0.0)
        else:
            q = solution.q(line["t"], line["soc"])
            assert line["reason"] == "no_final"
            assert q[line["action"]] == q.min()
            assert line["regret"] == pytest.approx(q.max() - q.min(), abs=1e-12)
    [policy] = [p for p in never.summary()["closed_loop"]["policies"] if p["name"] == "policy"]
    assert policy["invalid"] == 1.0
    some = drive(plant, [series], 150.0, {"policy": scripted_batch})
    lines = [line for line in some.hours() if line["policy"] == "policy"]
    count = sum(line["reason"] == "truncated" for line in lines)
    [policy] = [p for p in some.summary()["closed_loop"]["policies"] if p["name"] == "policy"]
    assert policy["invalid"] == count / 20 > 0


def test_results_do_not_depend_on_batches_and_questions_come_in_one_order():
    plant, series = Plant(), uneven()
    asked: list[list[Question]] = []

    def recorded(questions):
        asked.append(list(questions))
        return scripted_batch(questions)

    def one_by_one(questions):
        return [scripted_batch([question])[0] for question in reversed(questions)][::-1]

    together = drive(plant, series, 150.0, {"policy": recorded}, random_seeds=1)
    split = drive(plant, series, 150.0, {"policy": one_by_one}, random_seeds=1)
    assert list(together.hours()) == list(split.hours())
    for one in series:
        alone = drive(plant, [one], 150.0, {"policy": scripted_batch}, random_seeds=1)
        own = [line for line in together.hours() if line["series"] == one.name]
        assert list(alone.hours()) == own
    # 10 decisions a day: 3, 2 days less the hours 8 to 10, 1, 1 and 2 days
    counts = [decisions(plant, one) for one in series]
    assert counts == [30, 17, 10, 10, 20]
    assert [len(batch) for batch in asked] == [5] * 10 + [3] * 7 + [2] * 3 + [1] * 10
    assert [(q.series, q.t) for q in asked[0]] == [
        ("duck-1", 8), ("late", 0), ("early", 5), ("duck-4", 8), ("noon-5", 8)
    ]  # fmt: skip
    assert asked[0][0].prompt == write_prompt(plant, series[0], 8, 150.0)
    keys = [(q.series, q.t) for batch in asked for q in batch]
    assert len(set(keys)) == len(keys) == sum(counts)


def test_the_best_answers_cost_what_the_optimum_costs():
    plant, series = Plant(), uneven()
    solved = {one.name: solve_series(plant, one) for one in series}
    soc = {}

    def perfect(questions):
        replies = []
        for q in questions:
            solution = solved[q.series].solution
            last, content = soc.get(q.series, (0, 150.0))
            for t in range(last, q.t):  # off hours in between
                step = plant.step(content, 0, solution.load_T[t], solution.carbon_T[t])
                content = float(step.next_soc)
            action = int(solution.best(q.t, content))
            step = plant.step(content, action, solution.load_T[q.t], solution.carbon_T[q.t])
            soc[q.series] = (q.t + 1, float(step.next_soc))
            replies.append((action, "ok"))
        return replies

    result = drive(plant, series, 150.0, {"policy": perfect}, random_seeds=1)
    assert np.array_equal(result.figures["policy"], result.figures["optimal"])


def test_progress_and_policies_come_one_after_the_other():
    heard, who = [], []

    def named(name):
        def ask(questions):
            who.append(name)
            return scripted_batch(questions)

        return ask

    series = make_series(episodes=2, days=1, seed=1)
    drive(
        Plant(),
        series,
        150.0,
        {"base": named("base"), "policy": named("policy")},
        random_seeds=1,
        on_hour=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(n, 40) for n in range(2, 41, 2)]  # 2 policies, 2 series, 10 hours
    assert who == ["base"] * 10 + ["policy"] * 10


def test_the_summary_is_what_the_contract_says_and_json_can_hold_it():
    series = make_series(episodes=5, days=1, seed=1)
    ask = {"policy": scripted_batch, "base": lambda qs: [(0, "ok")] * len(qs)}
    result = drive(Plant(), series, 150, ask, random_seeds=4)
    summary = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert list(summary) == ["kg_co2", "closed_loop"]
    assert list(summary["kg_co2"]) == ["policy", "base", *RULES]
    loop = summary["closed_loop"]
    assert (loop["n_series"], loop["start_kwh"]) == (5, 150)
    assert loop["series"] == [one.name for one in series]
    assert Plant(**loop["plant"]) == Plant()
    for policy in loop["policies"]:
        assert summary["kg_co2"][policy["name"]] == policy["kg_co2"]
        low, high = policy["ci95"]
        assert low <= policy["loss"] <= high
    few = drive(Plant(), series[:4], 150, {}, random_seeds=1).summary()
    assert few["kg_co2"]["policy"] is None and few["kg_co2"]["base"] is None
    assert {policy["ci95"] for policy in few["closed_loop"]["policies"]} == {None}
    line = next(result.hours())
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    assert list(line) == [
        "series", "policy", "t", "timestamp", "load_kw", "carbon", "soc", "action", "reason",
        "output_kw", "emitted_kg", "unmet_kwh", "soc_after", "regret",
    ]  # fmt: skip


def test_random_is_the_mean_over_its_seeds_and_shows_its_first():
    series = make_series(episodes=2, days=1, seed=3)
    alone = [
        drive(Plant(), series, 150.0, {}, random_seeds=1, seed=s).figures["random"] for s in (5, 6)
    ]
    both = drive(Plant(), series, 150.0, {}, random_seeds=2, seed=5)
    assert np.allclose(both.figures["random"], (alone[0] + alone[1]) / 2, rtol=0, atol=1e-12)
    assert not np.allclose(alone[0], alone[1])
    shown = [line["emitted_kg"] for line in both.hours() if line["policy"] == "random"]
    assert sum(shown) / 2 == pytest.approx(alone[0][:, 1].mean(), abs=1e-9)


def test_ones_own_series_with_japanese_headers_drive_the_plant(shared_data):
    series = read_all([shared_data / "tes" / "exogenous"])
    assert len(series) == 8
    result = drive(Plant(), series, 150.0, {"policy": scripted_batch}, random_seeds=2)
    for name, own in result.figures.items():
        assert np.abs(own[:, 6] - own[:, 5]).max() <= 1e-9, name
    kg = result.summary()["kg_co2"]
    assert kg["optimal"] < kg["plan"] < kg["load_following"]


def test_what_cannot_be_driven_is_refused_before_anyone_is_asked(tmp_path):
    def nobody(questions):
        raise AssertionError("asked")

    one = generate("duck", 1, 1)
    with pytest.raises(DataError, match=r"own name.*'duck-1', 'duck-1'"):
        drive(Plant(), [one, one], 150.0, {"policy": nobody})
    with pytest.raises(DataError, match="one or more"):
        drive(Plant(), [], 150.0, {"policy": nobody})
    with pytest.raises(ConfigError, match="start_soc must lie in 0 to 300"):
        drive(Plant(), [one], 301.0, {"policy": nobody})
    with pytest.raises(ConfigError, match="name of a rule: plan"):
        drive(Plant(), [one], 150.0, {"plan": nobody})
    with pytest.raises(ConfigError, match="random_seeds"):
        drive(Plant(), [one], 150.0, {"policy": nobody}, random_seeds=0)
    with pytest.raises(ConfigError, match="level 4 was chosen, of 4 from 0"):
        drive(Plant(), [one], 150.0, {"policy": lambda qs: [(4, "ok")] * len(qs)})
    path = tmp_path / "short.csv"
    rows = [f"{one.time[0] + timedelta(hours=h)},20,0.3" for h in range(24)]
    path.write_text("\n".join(["datetime,load,carbon", *rows]))
    with pytest.raises(DataError, match="short: one day only") as error:
        drive(Plant(), [read_series(path)], 150.0, {"policy": nobody})
    assert "at least two days" in error.value.hint
    with pytest.raises(DataError, match="short: one day only"):
        decisions(Plant(), read_series(path))
