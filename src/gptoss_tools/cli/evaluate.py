"""gptoss evaluate."""

from __future__ import annotations

import os
from typing import Any

from ..console import align, out
from ..load import Loaded
from ..settings import EvaluateSettings
from .common import build_tiny_first, cache_dir
from .options import command

# Beside --tasks, the table's rows are asked only if one of these is given by hand.
ABOUT_ROWS = {"data", "samples", "closed_loop"}


@command(
    "evaluate",
    EvaluateSettings,
    positional="target",
    examples=[
        "gptoss evaluate",
        "gptoss evaluate runs/first --data data/heldout --samples 8",
        "gptoss evaluate runs/first --closed-loop 'series/*.csv'",
        "gptoss evaluate exports/first --compare-with openai/gpt-oss-20b",
        "gptoss evaluate runs/first --tasks arc_easy,hellaswag --limit 500",
    ],
)
def evaluate(settings: EvaluateSettings, loaded: Loaded) -> None:
    """Measure a policy on held-out decisions, with intervals and baselines.

    Regret is what a decision loses against the best action, in the table's own unit. Beside the
    policy go its base model, the table's `baseline_*` columns, the uniform policy and the optimum.
    Where a table has no values, what answers earn is measured instead: the rewards the run was
    trained with, or `--reward`.
    With --tasks, tasks of lm-evaluation-harness run on the same loaded model instead, or as well.
    Interrupted, it goes on where it stopped.
    """
    on_model = settings.model if "model" in loaded.explicit else None
    work = tasks = None
    if settings.tasks:
        from ..evaluation.task_names import refuse_unwritten

        refuse_unwritten(settings.tasks, settings.task_folder)
    if not settings.tasks or ABOUT_ROWS & loaded.explicit:
        from ..evaluation.work import prepare

        given = {name for name, origin in loaded.origins.items() if origin != "default"}
        work = prepare(settings, on_model, given)
    if settings.tasks:
        # lm-eval reads both: no processes of its own, which would die of our SIGTERM; no bars.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        if not out.verbose:
            os.environ.setdefault("TQDM_DISABLE", "1")
        from ..evaluation.task_work import prepare_tasks

        tasks = prepare_tasks(settings, on_model)
    asked: Any = work or tasks
    if settings.dry_run:
        rows = work and {
            "rows": len(work.table),
            "series": len(work.series),
            "answers": work.questions,
        }
        named = tasks and {"tasks": list(tasks.tasks.definitions), "limit": settings.limit}
        out.result(
            {"target": asked.source.label, **(rows or {}), **(named or {}), "out": asked.folder}
        )
        return
    for source in (asked.source, asked.base):
        if source is not None:
            build_tiny_first(source.base)
    out.notice(asked.source.label)
    result, texts = {}, []
    if work is not None:
        result = _decide(work, loaded)
        texts.append(_text(result) if work.rewards is None else _reward_text(result))
    if tasks is not None:
        result = _solve(tasks, loaded)
        texts.append(_tasks_text(result["tasks"]))
    out.result(result, "\n".join([*texts, f"written to {asked.folder}"]))
    run = asked.source.run
    out.hint(f"gptoss report {run}" if run else "gptoss report")


def _decide(work: Any, loaded: Loaded) -> dict[str, Any]:
    from ..evaluation.evaluate import evaluate as run
    from ..evaluation.task_results import keep_tasks, read_evaluation

    before = read_evaluation(work.folder)
    with out.progress("answer", work.questions, every=work.settings.batch_size) as update:
        result = run(
            work,
            on_progress=lambda done, total: update(done, total=total),
            on_notice=out.notice,
            cache_dir=cache_dir(),
            command=loaded.line,
        )
    return keep_tasks(work.folder, before, result)


def _solve(tasks: Any, loaded: Loaded) -> dict[str, Any]:
    from ..evaluation.task_work import evaluate_tasks

    with out.progress("example", None, every=500) as update:
        return evaluate_tasks(
            tasks,
            on_progress=lambda done, total: update(done, total=total),
            on_notice=out.notice,
            cache_dir=cache_dir(),
            command=loaded.line,
        )


def _text(result: dict[str, Any]) -> str:
    regret = result["regret"]
    rows = [
        {
            "policy": policy["name"],
            "regret": policy["regret"],
            "95 %": interval(policy["ci95"]),
            "score": policy["score"],
            "top-1": policy["top1"],
            "reward": policy["reward"],
            "invalid": policy["invalid"],
        }
        for policy in result["policies"]
    ]
    lines = [
        f"{result['n_rows']} decisions in {result['n_episodes']} episodes; "
        "regret in the unit of Q, 95 % by bootstrap over episodes",
        align(rows),
        verdict(regret),
        invalid_line(result["invalid"]),
    ]
    if result["by_phase"]:
        lines += ["", align([{"phase": n, **_brief(p)} for n, p in result["by_phase"].items()])]
    if sampled := result["sampled"]:
        lines += ["", _sampled(sampled)]
    if loop := result["closed_loop"]:
        columns = ("name", "kg_co2", "unmet_kwh", "final_kwh", "loss", "invalid")
        lines += [
            "",
            f"closed loop over {loop['n_series']} series from {loop['start_kwh']:g} kWh",
            align([{name: policy.get(name) for name in columns} for policy in loop["policies"]]),
        ]
    return "\n".join(lines)


def _reward_text(result: dict[str, Any]) -> str:
    sections = {"sum": result["reward"], **result["rewards"]}
    if len(result["rewards"]) == 1:
        del sections["sum"]
    rows = [
        {
            "reward": name,
            "weight": section.get("weight"),
            "policy": section["mean"],
            "95 %": interval(section["ci95"]),
            "base": section["base"],
            "difference": section["difference"] and section["difference"]["mean"],
            "its 95 %": interval(section["difference"] and section["difference"]["ci95"]),
            "masked": section["unknown"] / result["n_rows"],
        }
        for name, section in sections.items()
    ]
    head = f"{result['n_rows']} answers in {result['n_episodes']} episodes; 95 % by bootstrap"
    return "\n".join([head, align(rows), invalid_line(result["invalid"])])


def _tasks_text(found: dict[str, Any]) -> str:
    rows = []
    for name, task in found.items():
        if task["part_of"] is not None:
            continue
        for metric, figures in task["metrics"].items():
            row = {"task": name, "metric": metric, "n": task["n"]}
            row |= {"policy": figures["policy"], "std. error": figures["stderr"]}
            if any(one["base"] is not None for one in found.values()):
                row |= {"base": figures["base"], "difference": figures["difference"]}
                row |= {"its std. error": figures["difference_stderr"]}
            rows.append(row)
    return align(rows)


def invalid_line(invalid: dict[str, Any]) -> str:
    """Say how many answers were invalid, and by what."""
    causes = ("no_final", "truncated", "unparsable", "out_of_range")
    parts = [f", {cause} {invalid[cause]:.1%}" for cause in causes if invalid[cause]]
    chance = f" (up to {invalid['upper95']:.1%} by chance)" if invalid["upper95"] else ""
    return f"invalid answers: {invalid['total']:.1%}{''.join(parts)}{chance}"


def verdict(regret: dict[str, Any]) -> str:
    """Say in a sentence whether the policy is better than its base, and whether that is luck."""
    difference = regret["difference"]
    if difference is None:
        return "no base model to compare with (--compare-with names one)"
    mean, bounds, n = difference["mean"], difference["ci95"], difference["n"]
    word = "better" if mean < 0 else "worse"
    if bounds is None:
        return f"{word} than its base by {abs(mean):.4g} on {n} decisions of one episode"
    low, high = sorted(abs(bound) for bound in bounds)
    if bounds[0] <= 0 <= bounds[1]:
        return f"not told apart from its base: {mean:+.4g} (95 % {interval(bounds)}), n = {n}"
    return f"{word} than its base by {abs(mean):.4g} (95 % {low:.4g} to {high:.4g}), n = {n}"


def interval(bounds: list[float] | None) -> str:
    """Show a 95 % interval."""
    return "" if bounds is None else f"{bounds[0]:.4g} to {bounds[1]:.4g}"


def _brief(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": part["n_rows"],
        "regret": part["regret"],
        "95 %": interval(part["ci95"]),
        "base": part["base"],
        "top-1": part["top1"],
        "invalid": part["invalid"],
    }


def _sampled(sampled: dict[str, Any]) -> str:
    named = {"one draw": sampled, "majority": sampled["majority"], "best of n": sampled["best_of"]}
    rows = []
    for name, part in named.items():
        regret = part["regret"]
        mean = regret["mean"] if isinstance(regret, dict) else regret
        bounds = regret["ci95"] if isinstance(regret, dict) else part.get("ci95")
        rows.append(
            {"policy": name, "regret": mean, "95 %": interval(bounds), "top-1": part["top1"]}
        )
    passes = ", ".join(f"pass@{k} {share:.3f}" for k, share in sampled["pass_at"].items())
    return f"{sampled['n']} answers drawn per row\n{align(rows)}\n{passes}"
