"""Runs that look like real ones: two hundred steps, twelve episodes, a closed loop of three days.

Tables, values, metrics and the plant are the package's own; only the answers are invented: they are
drawn from softmax(Q / warmth). `python large_lab.py FOLDER` writes two runs, to look at a report.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from report_lab import SETTINGS, write_json, write_lines

from gptoss_tools.chat.harmony import parse_legacy, render
from gptoss_tools.data.decisions import load_table
from gptoss_tools.evaluation import closed_loop
from gptoss_tools.evaluation.metrics import Choices, assess
from gptoss_tools.evaluation.records import decision_rows
from gptoss_tools.tes.dataset import make_dataset, solve_series
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.series import generate

BASE_WARMTH = 2.0
LOG = "step,micro_step,prompt,completion,action,reward,target_action,reason,segment"


def large_runs(folder: Path) -> list[Path]:
    """Two runs of one base; the second is bolder and worse."""
    return [
        large_run(folder / "steady", seed=0, warmth=0.12),
        large_run(folder / "bold-lr", seed=1, warmth=0.35, learning_rate=2e-4, lora_r=16),
    ]


def large_run(folder: Path, *, seed: int, warmth: float, steps: int = 200, **settings: Any) -> Path:
    """A finished, evaluated run that was interrupted once."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    q, regret = _evaluate(folder, rng, seed, warmth)
    records = [
        _record(rng, step, steps, regret["base"], regret["mean"]) for step in range(steps + 1)
    ]
    write_lines(folder / "metrics.jsonl", records)
    lines = [f"0,1,p,c,,,{k},ok,1" for k in q.argmax(axis=1)]
    (folder / "completions.csv").write_text("\n".join([LOG, *lines]) + "\n", encoding="utf-8")
    own = {**SETTINGS, "max_steps": steps, "eval_steps": 20, "seed": seed, **settings}
    origins = {name: "default" for name in own}
    config = {
        "command": "train-grpo",
        "created": f"2026-11-{19 + seed}T14:20:00+0000",
        "world_size": 1,
        "base_sha256": "ef" * 32,
        "data": {"sha256": "12" * 32, "rows": 576, "dropped": 0},
        "origins": origins | {"max_steps": "--max-steps", "seed": "GPTOSS_SEED"},
        "settings": own,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "versions.json", {"python": "3.11.7", "torch": "2.13.0", "gpu": "H200"})
    line, again = f"gptoss train-grpo --max-steps {steps}", f"gptoss resume {folder.name}"
    starts = [(1, 0, "14:20", line), (2, 120, "19:02", again)]
    names = ("segment", "after_step", "time", "command", "machine", "max_steps")
    day = config["created"][:11]
    rows = [(n, after, f"{day}{at}:00+0000", said, "lab", steps) for n, after, at, said in starts]
    write_lines(folder / "starts.jsonl", [dict(zip(names, row, strict=True)) for row in rows])
    write_json(folder / "outcome.json", {"steps": steps})
    return folder


def _evaluate(folder: Path, rng: Any, seed: int, warmth: float) -> tuple[Any, dict[str, Any]]:
    """Write evaluation/ as `gptoss evaluate` does; return the values [R, K] and `regret`."""
    frame = make_dataset(episodes=12, seed=1042, on_path_rows=8, off_path_rows=4)
    q = frame[[f"q_action_{k}" for k in range(4)]].to_numpy()
    rewards = _softmax(q / 0.1)
    hours = frame["timestamp"].str[11:13].astype(int)
    frame = frame.assign(
        prompt=[render(parse_legacy(text), date="2026-01-01") for text in frame["prompt"]],
        phase=np.select([hours < 11, hours < 15], ["morning", "noon"], "afternoon"),
        **{f"reward_action_{k}": rewards[:, k] for k in range(4)},
    )
    frame.to_csv(folder.parent / "heldout.csv", index=False)
    table = load_table([folder.parent / "heldout.csv"], date="2026-01-01")
    episodes, same = frame["episode"].tolist(), np.random.default_rng(99)  # one base for all runs
    policy = [_answer(rng, row, warmth, 0.02) for row in q]
    base = [_answer(same, row, BASE_WARMTH, 0.12) for row in q]
    draws = [[_answer(rng, row, 1.5 * warmth, 0.03) for row in q] for _ in range(8)]
    own, other, drawn = _choices(policy), _choices(base), [_choices(draw) for draw in draws]
    result = assess(table, own, base=other, samples=drawn, episodes=episodes, seed=seed)
    driven = _drive(rng, warmth)
    content = {
        "format": 1,
        "target": str(folder),
        "base": "openai/gpt-oss-20b",
        "data": ["data/heldout"],
        "data_sha256": "cd" * 32,
        "action_names": None,
        **result,
        **driven.summary(),
    }
    place = folder / "evaluation"
    write_json(place / "evaluation.json", content)
    rows = decision_rows(table, policy, base=base, draws=draws, episodes=episodes)
    write_lines(place / "decisions.jsonl", list(rows))
    write_lines(place / "closed_loop.jsonl", list(driven.hours()))
    return q, result["regret"]


def _drive(rng: Any, warmth: float) -> Any:
    plant, series = Plant(), [generate(name, 3, 77) for name in ("duck", "noon", "peak")]
    solved = {one.name: solve_series(plant, one).solution for one in series}

    def asked(generator: Any, spread: float) -> Any:
        def reply(questions: Any) -> list[tuple[int | None, str]]:
            said = []
            for question in questions:
                soc = float(re.findall(r"tank (\d+) of", question.prompt)[0])
                values = solved[question.series].q(question.t, soc)
                said.append(_answer(generator, values, spread, 0.02))
            return [(one["action"], one["reason"]) for one in said]

        return reply

    base = asked(np.random.default_rng(98), BASE_WARMTH)
    return closed_loop.drive(plant, series, 150.0, {"policy": asked(rng, warmth), "base": base})


def _choices(records: list[dict[str, Any]]) -> Choices:
    actions = [-1 if r["action"] is None else r["action"] for r in records]
    return Choices(np.array(actions), [r["reason"] for r in records])


def _softmax(x: Any) -> Any:
    odds = np.exp(x - x.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def _answer(rng: Any, q: Any, warmth: float, invalid: float) -> dict[str, Any]:
    """One invented answer, as the journal of an evaluation holds it."""
    action: int | None = int(rng.choice(len(q), p=_softmax(q / warmth)))
    thought = " ".join(
        f"Level {k} would leave the tank better filled for the dirtier hours of tomorrow."
        for k in rng.integers(0, 4, size=rng.integers(2, 40))
    )
    final, reason = f"[{action}]", "ok"
    if rng.random() < invalid:
        reason = str(rng.choice(["truncated", "unparsable"]))
        final = None if reason == "truncated" else f"I would take level {action}."
        action = None
    said = f"<|channel|>analysis<|message|>{thought}"
    if final is not None:
        said += f"<|end|><|start|>assistant<|channel|>final<|message|>{final}<|return|>"
    answer = {"action": action, "reason": reason, "analysis": thought, "final": final}
    return {**answer, "completion": said, "tokens": len(thought) // 4}


def _record(rng: Any, step: int, steps: int, begin: float, end: float) -> dict[str, Any]:
    """One line of metrics: exponential progress with noise."""
    way = 1 - math.exp(-4 * step / steps)

    def between(a: float, b: float, noise: float) -> float:
        return max(0.0, float(a + (b - a) * way + noise * rng.normal()))

    record: dict[str, Any] = {"step": step, "segment": 1 if step <= 120 else 2}
    if step:
        ends = ((0.05, 0.004), (0.09, 0.01), (0.03, 0.004), (0.01, 0.0))
        causes = [between(a, b, 0.008) for a, b in ends]
        names = ("no_final", "truncated", "unparsable", "out_of_range")
        record |= {f"invalid_{n}": share for n, share in zip(names, causes, strict=True)}
        ends = ((0.25, 0.55), (0.3, 0.1), (0.25, 0.08), (0.2, 0.27))
        odds = [0.01 + between(a, b, 0.05) for a, b in ends]
        valid = 1 - sum(causes)
        record |= {f"action_{k}": valid * part / sum(odds) for k, part in enumerate(odds)}
        record |= {
            "invalid_share": sum(causes),
            "reward": between(0.28, 0.55, 0.03),
            "entropy": between(0.9, 0.35, 0.04),
            "completions_mean_length": between(620, 340, 25),
            "grad_norm": between(0.6, 0.25, 0.09),
            "frac_reward_zero_std": between(0.02, 0.3, 0.06),
            "regret": between(1.1 * begin, 1.2 * end, 0.15 * end),
        }
    if step % 20 == 0:
        regret = between(begin, end, 0.06 * begin) if step else begin
        record |= {
            "eval_regret": regret,
            "eval_regret_low": 0.72 * regret,
            "eval_regret_high": 1.3 * regret,
            "eval_reward": between(0.3, 0.58, 0.01),
        }
    return record


if __name__ == "__main__":
    large_runs(Path(sys.argv[1]))
