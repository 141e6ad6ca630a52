"""What the report's tests share: small runs made by hand, every number of them known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETTINGS = {
    "model": "openai/gpt-oss-20b",
    "lora_r": 4,
    "learning_rate": 5e-5,
    "max_steps": 4,
    "eval_steps": 2,
    "eval_data": ["data/heldout"],
    "completion_log_path": None,
    "lora_target_modules": ["all-linear"],
}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def bare_run(folder: Path, created: str = "2026-11-21T09:00:00+0000", **settings: Any) -> Path:
    """A run of which nothing is there but its config.json."""
    config = {"command": "train-grpo", "created": created, "settings": {**SETTINGS, **settings}}
    write_json(folder / "config.json", config)
    (folder / "checkpoints").mkdir()
    return folder


def small_run(folder: Path, **settings: Any) -> Path:
    """A finished run of four steps and an evaluation of three decisions, all by hand."""
    bare_run(folder, **settings)
    write_json(folder / "outcome.json", {"steps": 4})
    write_json(folder / "versions.json", {"python": "3.11.7", "torch": "2.13.0", "gpu": None})
    start = {"segment": 1, "after_step": 0, "time": "2026-11-21T09:00:00+0000", "max_steps": 4}
    write_lines(folder / "starts.jsonl", [{**start, "command": "gptoss train-grpo"}])
    metrics = [{"step": 0, "segment": 1}, *(training_record(step) for step in (1, 2, 3, 4))]
    names = ("eval_regret", "eval_regret_low", "eval_regret_high")
    for step, regret in ((0, (2.0, 1.5, 2.5)), (2, (0.5, 0.25, 1.0)), (4, (1.0, 0.5, 1.5))):
        metrics[step] |= dict(zip(names, regret, strict=True))
    write_lines(folder / "metrics.jsonl", metrics)
    (folder / "completions.csv").write_text(
        "step,micro_step,prompt,completion,action,reward,target_action,reason,segment\n"
        '0,1,"a\nprompt",x,0,0.5,0,ok,1\n0,1,p,x,1,0.5,1,ok,1\n0,1,p,x,1,0.5,1,ok,1\n0,1,p,x,,,1,truncated,1\n',
        encoding="utf-8",
    )
    write_json(folder / "evaluation" / "evaluation.json", evaluation())
    write_lines(folder / "evaluation" / "decisions.jsonl", decisions())
    write_lines(folder / "evaluation" / "closed_loop.jsonl", closed_loop())
    return folder


def training_record(step: int) -> dict[str, Any]:
    """What a training step of two actions logs: a quarter invalid, half of it truncated."""
    return {
        "step": step,
        "segment": 1,
        "reward": 0.25 * step,
        "reward_std": 0.1,
        "entropy": 1.0 / step,
        "grad_norm": 0.5,
        "completions_mean_length": 100.0 + step,
        "frac_reward_zero_std": 0.0,
        "action_0": 0.25,
        "action_1": 0.5,
        "invalid_share": 0.25,
        "invalid_no_final": 0.125,
        "invalid_truncated": 0.125,
        "invalid_unparsable": 0.0,
        "invalid_out_of_range": 0.0,
    }


def evaluation() -> dict[str, Any]:
    """evaluation.json of the three decisions below; gains 1 on its base, surely."""
    return {
        "format": 1,
        "target": "runs/small",
        "label": "final adapter of runs/small",
        "step": 4,
        "base": "openai/gpt-oss-20b",
        "data": ["data/heldout"],
        "data_sha256": "ab" * 32,
        "n_rows": 3,
        "n_episodes": 2,
        "n_actions": 2,
        "action_names": ["off", "full"],
        "tie_tolerance": 1e-9,
        "regret": {
            "mean": 1.0,
            "ci95": [0.5, 1.5],
            "base": 2.0,
            "uniform": 4.0,
            "fixed": 3.0,
            "difference": {"mean": -1.0, "ci95": [-1.25, -0.75], "n": 3},
        },
        "score": {"mean": 75.0, "ci95": [60.0, 90.0]},
        "top1": 1 / 3,
        "top1_ci95": [0.0, 1.0],
        "near_optimal": 0.5,
        "invalid": {"total": 1 / 3, "truncated": 1 / 3, "n": 3, "upper95": None},
        "reward": {"mean": 0.6, "uniform": 0.5, "fixed": 0.55, "best": 0.9, "base": 0.4},
        "actions": {
            "policy": [0.5, 0.5],
            "optimal": [1 / 3, 2 / 3],
            "confusion": [[1, 0, 0], [1, 0, 1]],
            "recall": [1.0, 0.0],
        },
        "policies": [
            {"name": "best", "regret": 0.0, "ci95": [0.0, 0.0]},
            {"name": "policy", "regret": 1.0, "ci95": [0.5, 1.5]},
            {"name": "base", "regret": 2.0, "ci95": None},
            {"name": "night_rule", "regret": 2.5, "ci95": [2.0, 3.0]},
            {"name": "uniform", "regret": 4.0, "ci95": [3.0, 5.0]},
        ],
        "sampled": {
            "n": 4,
            "regret": {"mean": 1.25, "ci95": [1.0, 1.5]},
            "majority": {"regret": 0.75, "ci95": [0.5, 1.0]},
            "best_of": {"regret": 0.25, "ci95": [0.0, 0.5]},
            "calibration": {
                "ece": 0.25,
                "bins": [
                    {"low": 0.4, "high": 0.5, "n": 1, "confidence": 0.5, "correct": 1.0},
                    {"low": 0.9, "high": 1.0, "n": 4, "confidence": 1.0, "correct": 0.75},
                ],
                "tv": 0.125,
            },
        },
        "by_phase": {
            "day": {"n_rows": 2, "regret": 0.5, "ci95": [0.0, 1.0], "base": 1.0},
            "dusk": {"n_rows": 1, "regret": 2.0, "ci95": None, "base": 4.0},
        },
        "kg_co2": {"policy": 110.0, "base": 150.0, "optimal": 100.0},
        "closed_loop": {
            "series": ["duck-1"],
            "n_series": 1,
            "policies": [
                {
                    "name": "policy",
                    "kg_co2": 110.0,
                    "emitted_kg": 112.0,
                    "unmet_kwh": 2.0,
                    "final_kwh": 40.0,
                    "cost_kg": 130.0,
                    "loss": 5.0,
                    "invalid": 0.25,
                },
                {
                    "name": "optimal",
                    "kg_co2": 100.0,
                    "emitted_kg": 101.0,
                    "unmet_kwh": 0.0,
                    "final_kwh": 30.0,
                    "cost_kg": 100.0,
                    "loss": 0.0,
                    "invalid": 0.0,
                },
            ],
        },
    }


def decisions() -> list[dict[str, Any]]:
    """Three rows: right; wrong by the whole gap of 1; invalid, so the worst action by 2."""
    thought = "<|channel|>analysis<|message|>"
    said = f"{thought}Hm.<|end|><|start|>assistant<|channel|>final<|message|>[0]<|return|>"
    answered = {"reason": "ok", "analysis": "Hm.", "final": "[0]", "completion": said}
    cut = {"reason": "truncated", "analysis": "So long", "final": None}
    rows: list[dict[str, Any]] = [
        {"q": [2.0, 1.0], "optimal_action": 0, "action": 0, "regret": 0.0, **answered},
        {"q": [1.0, 2.0], "optimal_action": 1, "action": 0, "regret": 1.0, **answered},
        {"q": [-2.0, 0.0], "optimal_action": 1, "action": None, "regret": 2.0, **cut},
    ]
    rows[2]["completion"] = f"{thought}So long"
    places = (
        ("duck-1", "day", "2026-06-01T08:00:00", "Hour 8?"),
        ("duck-1", "day", "2026-06-01T10:00:00", "Hour 10?"),
        ("noon-2", "dusk", "2026-06-02T08:00:00", "Hour 8?"),
    )
    for number, (row, place) in enumerate(zip(rows, places, strict=True), start=1):
        row |= dict(zip(("episode", "phase", "timestamp", "prompt"), place, strict=True))
        row |= {"row": number, "where": f"t.csv row {number}", "names": ["off", "full"]}
        row |= {"rewards": None, "top1": number == 1, "tokens": 9, "votes": None}
    return rows


def closed_loop() -> list[dict[str, Any]]:
    """Two hours of one series: the policy meets half of the second hour's load."""
    rows = []
    own, best = ("policy", [20.0, 30.0, 5.0], [0.0, 2.0]), ("optimal", [20.0, 40.0, 30.0], [0, 0])
    for policy, soc, unmet in (own, best):
        for t in (0, 1):
            rows.append(
                {
                    "series": "duck-1",
                    "policy": policy,
                    "t": t,
                    "timestamp": f"2026-06-01T{8 + t:02d}:00:00",
                    "load_kw": 10.0 + 10 * t,
                    "carbon": 0.25,
                    "soc": soc[t],
                    "action": 1 - t,
                    "reason": "ok",
                    "output_kw": 100.0 * (1 - t),
                    "emitted_kg": 1.0,
                    "unmet_kwh": unmet[t],
                    "soc_after": soc[t + 1],
                    "regret": 0.0,
                }
            )
    return rows
