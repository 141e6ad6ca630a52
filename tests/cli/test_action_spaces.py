"""Two phases, each with named actions and a reasoning effort of its own, from table to answers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from gptoss_tools.data.decisions import load_table

DATE = "2026-01-01"
PHASES = {
    "fill": (["wait", "fill"], "low"),
    "use": (["hold", "half load", "full"], "high"),
}
NAMES = tuple(name for names, _ in PHASES.values() for name in names)


def rows() -> list[dict]:
    """Twelve decisions, the phases in turn; the best action changes with the store."""
    found = []
    for number in range(12):
        phase = list(PHASES)[number % 2]
        names, effort = PHASES[phase]
        wanted = number // 2 % len(names)
        answers = " or ".join(f"[{name}]" for name in names)
        found.append(
            {
                "prompt": f"system: Answer {answers}.\nuser: store {10 * number} kWh.",
                "phase": phase,
                "actions": names,
                "reasoning_effort": effort if number else None,  # the first takes the setting
                "q": [-0.1 * abs(action - wanted) for action in range(len(names))],
            }
        )
    return found


@pytest.fixture
def run(gptoss):
    """Run a command that must succeed; return its document."""

    def call(*arguments):
        code, out, err = gptoss(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def tables(run):
    """The same rows as lists in JSONL and as columns in CSV, ready to train on."""
    lines = [json.dumps(row) for row in rows()]
    Path("jsonl").mkdir()
    Path("jsonl/x.jsonl").write_text("\n".join(lines))
    records = []
    for row in rows():
        values = {f"q_action_{action}": value for action, value in enumerate(row.pop("q"))}
        records.append({**row, "actions": "|".join(row["actions"]), **values})
    Path("csv").mkdir()
    pd.DataFrame(records).to_csv("csv/x.csv", index=False)
    for kind in ("jsonl", "csv"):
        run("convert-harmony", kind, "--date", DATE, "--reasoning-effort", "medium")
        run("calc-reward", kind)
    return {kind: Path(kind, f"x_harmony_with_reward.{kind}") for kind in ("jsonl", "csv")}


def test_lists_in_jsonl_and_columns_in_csv_are_the_same_table(run, tables):
    table = load_table(tables["csv"])
    assert table.n_actions.tolist() == [2, 3] * 6
    assert table.names == [names for names, _ in PHASES.values()] * 6
    efforts = [prompt.split("Reasoning: ")[1].split("\n")[0] for prompt in table.prompts]
    assert efforts == ["medium", "high"] + ["low", "high"] * 5
    assert load_table(tables["jsonl"]).sha256 == table.sha256
    # softmax of (0, -0.1) / 0.05 = 1 / (1 + e^-2)
    assert table.rewards[0, 0] == pytest.approx(0.880797, abs=1e-6)
    for kind in tables:
        assert run("check-data", kind)["problems"] == []


@pytest.mark.slow
def test_phases_with_their_own_named_actions_go_the_whole_way(gptoss, run, tables):
    from gptoss_tools.models.tiny import Recipe, build_tiny

    table = load_table(tables["csv"])
    recipe = Recipe(
        steps=150, answer_steps=50, batch_size=8, far_every=0, whole_share=0.5, answers=NAMES
    )
    model = build_tiny(Path("model"), prompts=table.prompts, recipe=recipe)
    small = ("--num-generations", 8, "--prompts-per-step", 4, "--max-steps", 3)
    outcome = run(
        *("train-grpo", "--model", model, "--data", tables["jsonl"], "--output-dir", "run"),
        *("--max-completion-length", 24, "--gradient-accumulation-steps", 1, *small),
    )
    assert outcome["steps"] == 3
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for phase in PHASES:
        logged = [m for m in metrics if f"phase_{phase}_invalid" in m]
        assert logged, phase
        assert any(0 < m.get(f"phase_{phase}_reward", 0) < 1 for m in logged)
        assert all(m.get(f"phase_{phase}_regret", 0) >= 0 for m in logged)
    drawn = pd.read_csv("run/completions.csv")
    # an index in the CSV, and `full` only where there are three actions
    assert set(drawn["action"].dropna()) == {0, 1, 2}
    assert {"ok", "out_of_range"} <= set(drawn["reason"])

    run("generate", "run", "--data", tables["csv"], "--out", "a.jsonl", "--max-new-tokens", 24)
    answers = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    named = [(a, names) for a, names in zip(answers, table.names, strict=True) if a["name"]]
    assert named
    for answer, names in named:
        assert type(answer["action"]) is int
        assert names[answer["action"]] == answer["name"]
        assert answer["final"] in (answer["name"], f"[{answer['name']}]")
    for answer in answers:
        assert (answer["reason"] == "ok") == (answer["name"] is not None)

    row = 1 + next(i for i, answer in enumerate(answers) if answer["name"])
    expected = answers[row - 1]
    asked = ("--max-new-tokens", 24, "--row", row, "--data", tables["csv"])
    shown = run("test-adapter", "run", *asked)
    assert (shown["action"], shown["name"]) == (expected["action"], expected["name"])
    assert [value["name"] for value in shown["values"]] == table.names[row - 1]
    code, out, _ = gptoss("test-adapter", "run", *asked)
    assert code == 0 and f"action: {shown['action']} ({shown['name']})" in out

    given = [flag for name in table.names[row - 1] for flag in ("--actions", name)]
    Path("prompt.txt").write_text(table.prompts[row - 1])
    one = run("generate", "run", "--prompt-file", "prompt.txt", "--max-new-tokens", 24, *given)
    assert (one["action"], one["name"]) == (shown["action"], shown["name"])
    plain = run("generate", "run", "--prompt-file", "prompt.txt", "--max-new-tokens", 24)
    assert (plain["action"], plain["reason"]) == (None, "unparsable")
    assert "name" not in plain
