"""gptoss evaluate."""

from __future__ import annotations

from typing import Any

from ..console import align, out
from ..load import Loaded
from ..settings import EvaluateSettings
from .common import build_tiny_first, cache_dir
from .options import command


@command(
    "evaluate",
    EvaluateSettings,
    positional="target",
    examples=[
        "gptoss evaluate",
        "gptoss evaluate runs/first --data data/heldout --samples 8",
        "gptoss evaluate runs/first --closed-loop 'series/*.csv'",
        "gptoss evaluate exports/first --compare-with openai/gpt-oss-20b",
    ],
)
def evaluate(settings: EvaluateSettings, loaded: Loaded) -> None:
    """Measure a policy on held-out decisions, with intervals and baselines.

    Regret is what a decision loses against the best action, in the table's own unit. Beside the
    policy go its base model, the table's `baseline_*` columns, the uniform policy and the optimum.
    Interrupted, it goes on where it stopped.
    """
    from ..evaluation.evaluate import evaluate as run
    from ..evaluation.work import prepare

    work = prepare(settings, settings.model if "model" in loaded.explicit else None)
    if settings.dry_run:
        out.result(
            {
                "target": work.source.label,
                "rows": len(work.table),
                "series": len(work.series),
                "answers": work.questions,
                "out": work.folder,
            }
        )
        return
    for source in (work.source, work.base):
        if source is not None:
            build_tiny_first(source.base)
    out.notice(work.source.label)
    with out.progress("answer", work.questions, every=settings.batch_size) as update:
        result = run(
            work,
            on_progress=lambda done, total: update(done, total=total),
            on_notice=out.notice,
            cache_dir=cache_dir(),
            command=loaded.line,
        )
    out.result(result, _text(result, str(work.folder)))
    out.hint(f"gptoss report {work.source.run}" if work.source.run else "gptoss report")


def _text(result: dict[str, Any], folder: str) -> str:
    regret, invalid = result["regret"], result["invalid"]
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
        "invalid answers: "
        + f"{invalid['total']:.1%}"
        + "".join(
            f", {cause} {invalid[cause]:.1%}"
            for cause in ("no_final", "truncated", "unparsable", "out_of_range")
            if invalid[cause]
        )
        + (f" (up to {invalid['upper95']:.1%} by chance)" if invalid["upper95"] else ""),
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
    return "\n".join([*lines, f"written to {folder}"])


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
