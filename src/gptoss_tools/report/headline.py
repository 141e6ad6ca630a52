"""What a report says first: which run, in which state, and how good it is, in words and cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tools.core.history import invalid_share
from gptoss_tools.core.overview import best_record
from gptoss_tools.report.collect import RunRecord, number
from gptoss_tools.report.decisions import unevaluated
from gptoss_tools.report.parts import Table
from gptoss_tools.report.words import DASH, between, count_of, percent, short


@dataclass(frozen=True)
class Card:
    """One figure that counts, with what to compare it with."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """One run in words: where it stands, and whether it is better than its base.

    `tone` is good or bad only where the 95 % interval of the difference leaves 0 out.
    """

    label: str
    facts: str
    sentence: str
    tone: str = "open"


def verdict(record: RunRecord) -> Verdict:
    """Return the run's state and its difference from the base in plain sentences."""
    sentence, tone = _sentence(record)
    return Verdict(record.label, _facts(record), sentence, tone)


def cards(record: RunRecord) -> list[Card]:
    """Return the figures that count, from the evaluation, else from training's own."""
    made = [make(record) for make in (_regret, _reward, _score, _top1, _invalid, _carbon)]
    return [card for card in made if card is not None]


def comparison(records: Sequence[RunRecord]) -> Table:
    """Return the cards of several runs as a table, one column per run."""
    rows: dict[str, list[str]] = {}
    for place, record in enumerate(records):
        for card in cards(record):
            row = rows.setdefault(card.name, [DASH] * len(records))
            row[place] = f"{card.value}\n{card.detail}" if card.detail else card.value
    return Table(
        ["", *(record.label for record in records)],
        [[name, *cells] for name, cells in rows.items()],
    )


def _facts(record: RunRecord) -> str:
    facts = record.facts
    parts = [str(record.settings.get("model") or ""), facts.state]
    if facts.step is not None:
        parts.append(f"{facts.step} of {count_of(facts.max_steps or facts.step, 'step')}")
    parts.append((facts.created or "")[:16].replace("T", " "))
    return ", ".join(part for part in parts if part)


def _sentence(record: RunRecord) -> tuple[str, str]:
    if record.evaluation is None:
        return unevaluated(record), "missing"
    rows, episodes = record.found("n_rows"), record.found("n_episodes")
    n = f"n = {count_of(rows, 'decision')}" if isinstance(rows, int) else ""
    if isinstance(episodes, int):
        n += f" in {count_of(episodes, 'episode')}"
    # The file holds policy minus base; people think in gains, and regret is a loss.
    figure, sign = ("reward", -1) if record.found("regret") is None else ("regret", 1)
    mean = number(record.found(figure, "difference", "mean"))
    interval: Any = record.found(figure, "difference", "ci95")
    if mean is None:
        value = short(number(record.found(figure, "mean")))
        return f"Held-out {figure} {value}, not compared with its base; {n}.", "open"
    if sign < 0:
        n = n.replace("decision", "answer")
        mean, interval = -mean, [-bound for bound in reversed(interval or [])]
    if not between(interval):
        word = "below" if sign * mean <= 0 else "above"
        return f"{short(abs(mean))} {word} its base, with no interval; {n}.", "open"
    low, high = interval
    if high < 0:
        return f"Better than its base by {short(-mean)} ({between([-high, -low])}), {n}.", "good"
    if low > 0:
        return f"Worse than its base by {short(mean)} ({between([low, high])}), {n}.", "bad"
    gain = f"{short(-mean)} ({between([-high, -low])})"
    return f"Not told apart from its base: gain {gain}, {n}.", "open"


def _regret(record: RunRecord) -> Card | None:
    mean = number(record.found("regret", "mean"))
    if mean is not None:
        base = number(record.found("regret", "base"))
        return Card(
            "Held-out regret",
            short(mean),
            _joined(
                _interval(record.found("regret", "ci95")),
                base is not None and f"base {short(base)}",
            ),
        )
    best = best_record(record.metrics)
    if best is None or "eval_regret" not in best:
        return None
    bounds = [number(best.get("eval_regret_low")), number(best.get("eval_regret_high"))]
    detail = _joined(_interval(bounds), f"while training, step {best['step']}")
    return Card("Held-out regret", short(best["eval_regret"]), detail)


def _reward(record: RunRecord) -> Card | None:
    """Where there is no regret."""
    mean = number(record.found("reward", "mean"))
    if mean is not None and record.found("regret") is None:
        base = number(record.found("reward", "base"))
        compared = base is not None and f"base {short(base)}"
        interval = _interval(record.found("reward", "ci95"))
        return Card("Held-out reward", short(mean), _joined(interval, compared))
    best = best_record(record.metrics)
    if record.evaluation is not None or best is None or "eval_regret" in best:
        return None
    bounds = [number(best.get("eval_reward_low")), number(best.get("eval_reward_high"))]
    detail = _joined(_interval(bounds), f"while training, step {best['step']}")
    return Card("Held-out reward", short(best["eval_reward"]), detail)


def _score(record: RunRecord) -> Card | None:
    mean = number(record.found("score", "mean"))
    if mean is None:
        return None
    detail = _joined(_interval(record.found("score", "ci95")), "100 is optimal, 0 is dice")
    return Card("Score", short(mean), detail)


def _top1(record: RunRecord) -> Card | None:
    share, best = number(record.found("top1")), best_record(record.metrics) or {}
    if share is not None:
        near = number(record.found("near_optimal"))
        interval = _interval(record.found("top1_ci95"), percent)
        return Card(
            "Best action found", percent(share), _joined(interval, f"near best {percent(near)}")
        )
    share = number(best.get("eval_top1"))
    return (
        None if share is None else Card("Best action found", percent(share), f"step {best['step']}")
    )


def _invalid(record: RunRecord) -> Card | None:
    share, n = number(record.found("invalid", "total")), record.found("invalid", "n")
    if share is not None and isinstance(n, int):
        upper = number(record.found("invalid", "upper95"))
        seen = (
            f"none in {n}, so below {percent(upper)}"
            if share == 0
            else f"{round(share * n)} of {n}"
        )
        return Card("Invalid answers", percent(share), seen)
    logged = [s for r in record.metrics if (s := invalid_share(r)) is not None]
    return (
        Card("Invalid answers", percent(logged[-1]), "while training, last record")
        if logged
        else None
    )


def _carbon(record: RunRecord) -> Card | None:
    kg = number(record.found("kg_co2", "policy"))
    if kg is None:
        return None
    best, base = (number(record.found("kg_co2", name)) for name in ("optimal", "base"))
    rows = record.found("closed_loop", "policies") or []
    own = next((row for row in rows if row.get("name") == "policy"), {})
    unmet = number(own.get("unmet_kwh")) or 0
    above = ""
    if best:
        above = f"optimum {short(best)} ({'+' if kg >= best else ''}{percent(kg / best - 1)})"
    parts = (base is not None and f"base {short(base)}", unmet > 0 and f"{short(unmet)} kWh unmet")
    return Card("kgCO2 in closed loop", short(kg), _joined(above, *parts))


def _interval(bounds: object, form: Callable[[float], str] = short) -> str:
    if not isinstance(bounds, list) or len(bounds) != 2 or None in bounds:
        return ""
    return f"{form(bounds[0])} to {form(bounds[1])}"


def _joined(*parts: str | bool) -> str:
    return "; ".join(str(part) for part in parts if part)
