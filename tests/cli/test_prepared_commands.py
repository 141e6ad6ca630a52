"""The whole way on a small table of prompts and answers, as a user types it, on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROWS = [
    {
        "prompt": [
            {"role": "user", "content": f"Which hour is it? It is hour {hour}. Say [{hour}]."}
        ],
        "answer": f"[{hour}]",
    }
    for hour in range(4)
]
TRAIN = (
    *("train-grpo", "--model", "tiny", "--data", "hours.jsonl", "--date", "2026-01-01"),
    *("--reward", "format", "--reward", "exact", "--reward-weights", "0.5,2"),
    *("--num-generations", "4", "--max-completion-length", "16", "--prompts-per-step", "2"),
    *("--gradient-accumulation-steps", "1", "--save-steps", "1", "--device", "cpu"),
    *("--eval-steps", "2", "--eval-data", "hours.jsonl", "--temperature", "1.5"),
)
DECODING = ("--data", "hours.jsonl", "--date", "2026-01-01", "--max-new-tokens", "16", "--json")


@pytest.mark.slow
def test_a_table_of_answers_is_trained_on_resumed_measured_and_shown(tiny, gptoss):
    Path("hours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    code, out, err = gptoss(*TRAIN, "--max-steps", "2", "--output-dir", "runs/a", "--json")
    assert code == 0, err
    trained = json.loads(out)
    assert "regret" not in trained and trained["eval_reward"] is not None
    code, out, err = gptoss("resume", "runs/a", "--max-steps", "4", "--json")
    assert code == 0, err
    last = json.loads(out)
    code, out, err = gptoss("evaluate", "runs/a", *DECODING)
    assert code == 0, err
    measured = json.loads(out)
    # the policy in training and the one that was saved earn the same
    assert measured["reward"]["mean"] == pytest.approx(last["eval_reward"], abs=1e-6)
    assert measured["reward"]["base"] is not None
    format_, exact = measured["rewards"]["format"], measured["rewards"]["exact"]
    assert measured["reward"]["mean"] == pytest.approx(0.5 * format_["mean"] + 2 * exact["mean"])
    code, out, _ = gptoss(
        "evaluate", "runs/a", *DECODING[:-1], "--reward", "exact", "--out", "other"
    )
    assert code == 0 and "exact" in out and "format" not in out
    code, out, _ = gptoss("report", "runs/a")
    assert code == 0
    code, out, _ = gptoss("runs", "--json")
    (run,) = json.loads(out)["runs"]
    assert run["reward"] == measured["reward"]["mean"] and run["regret"] is None
    code, out, _ = gptoss("generate", "runs/a", *DECODING)
    assert code == 0 and json.loads(out)["rows"] == 4
    _one_answer_is_shown_with_what_it_earns(gptoss, measured["data"])


def _one_answer_is_shown_with_what_it_earns(gptoss, measured_on):
    """Without --data of the run's own held-out table, of which `evaluate` wrote every row."""
    rows = Path("runs/a/evaluation/decisions.jsonl").read_text().splitlines()
    known = json.loads(rows[1])
    asked = ("test-adapter", "runs/a", "--row", "2", "--date", "2026-01-01")
    code, out, err = gptoss(*asked, "--max-new-tokens", "16", "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert measured_on == ["hours.jsonl"] and shown["row"] == "hours.jsonl row 2"
    assert (shown["answer"], shown["expected"]) == (known["final"] or "", ROWS[1]["answer"])
    assert shown["reward"] == known["reward"] and shown["values"] == []
    assert {name: shown[f"reward {name}"] for name in ("format", "exact")} == known["scores"]
    code, out, _ = gptoss(*asked, "--max-new-tokens", "16")
    assert code == 0 and f"expected: {ROWS[1]['answer']}" in out and "action" not in out
