"""Policies drive the plant through whole series: what all their choices cost in the end.

A table asks for single decisions; here each one leads to the next. Beside the asked policies go the
optimum, the rules of `tes.baselines` and dice. Kilograms are kgCO2; `loss` and `regret` are in the
unit of Q, which is `reward_scale` kg. By the performance difference identity (Kakade and Langford
2002) the regrets along a policy's own path sum to its loss, to `Solution.error_bound`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gptoss_tools.chat.actions import Reason
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.evaluation.intervals import bootstrap_mean
from gptoss_tools.tes.baselines import BASELINES, Rule, random_rule
from gptoss_tools.tes.dataset import Episode, check_start, episode_length, solve_series
from gptoss_tools.tes.plant import Floats, Plant
from gptoss_tools.tes.prompts import write_prompt
from gptoss_tools.tes.series import Series, read_all
from gptoss_tools.tes.solver import Rollout

__all__ = ["Ask", "LoopResult", "Question", "decisions", "drive", "read_all"]

OFF = "off"  # the reason outside the plant's decision hours
# What is said of every policy: means over series, of random also over its seeds.
FIGURES = (
    *("kg_co2", "emitted_kg", "unmet_kwh", "final_kwh", "cost_kg"),
    *("loss", "regret_sum", "invalid"),
)


@dataclass(frozen=True)
class Question:
    """One decision: `series` and `t` name it for good, `prompt` is in the legacy form."""

    series: str
    t: int
    prompt: str


# Questions -> (level index or None, reason) in their order. A batch holds one question of every
# series that is not at its end, so an answer must not depend on what else is in the batch.
Ask = Callable[[Sequence[Question]], Sequence[tuple[int | None, str]]]


class Trip(NamedTuple):
    """One policy's way through one series; reason and regret are per hour."""

    policy: str
    episode: Episode
    run: Rollout
    reasons: list[str]
    regret_T: Floats


@dataclass(frozen=True)
class LoopResult:
    """Every policy's way through every series (of random the first), and figures [series, 8]."""

    plant: Plant
    start_soc: float
    series: list[str]
    trips: list[Trip]
    figures: dict[str, Floats]
    seed: int

    def summary(self) -> dict[str, Any]:
        """Return `kg_co2` and `closed_loop` as evaluation.json holds them.

        `ci95` is that of the loss over series, None for fewer than 5.
        """
        loss = np.stack([own[:, FIGURES.index("loss")] for own in self.figures.values()], axis=1)
        intervals: list[Any] = [None] * len(self.figures)
        if len(self.series) >= 5:
            intervals = [list(pair) for pair in bootstrap_mean(loss, self.series, seed=self.seed)]
        policies = [
            {"name": name, **dict(zip(FIGURES, own.mean(axis=0).tolist(), strict=True)), "ci95": ci}
            for (name, own), ci in zip(self.figures.items(), intervals, strict=True)
        ]
        plant = dataclasses.asdict(self.plant).items()
        return {
            "kg_co2": {"policy": None, "base": None} | {p["name"]: p["kg_co2"] for p in policies},
            "closed_loop": {
                "series": self.series,
                "n_series": len(self.series),
                "start_kwh": self.start_soc,
                "plant": {k: list(v) if isinstance(v, tuple) else v for k, v in plant},
                "policies": policies,
            },
        }

    def hours(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of closed_loop.jsonl; after an invalid answer `action` is what was run.

        Series by series, policy by policy.
        """
        levels = np.asarray(self.plant.levels) * self.plant.rated_kw
        for policy, episode, run, reasons, regret in self.trips:
            series = episode.series
            for t, reason in enumerate(reasons):
                yield {
                    "series": series.name,
                    "policy": policy,
                    "t": t,
                    "timestamp": series.time[t].isoformat(),
                    "load_kw": float(series.load_kw[t]),
                    "carbon": float(series.carbon[t]),
                    "soc": float(run.soc[t]),
                    "action": int(run.action[t]),
                    "reason": reason,
                    "output_kw": float(levels[run.action[t]]),
                    "emitted_kg": float(run.emitted[t]),
                    "unmet_kwh": float(run.unmet[t]),
                    "soc_after": float(run.soc[t + 1]),
                    "regret": float(regret[t]),
                }


def decisions(plant: Plant, series: Series) -> int:
    """Return how many questions a series puts to each policy; DataError if it is too short."""
    return int(plant.decides(series.hours[: episode_length(plant, series)]).sum())


def drive(
    plant: Plant,
    series: Sequence[Series],
    start_soc: float,
    policies: Mapping[str, Ask],
    *,
    random_seeds: int = 20,
    seed: int = 0,
    on_hour: Callable[[int, int], None] | None = None,
) -> LoopResult:
    """Let `policies` and everything beside them drive the plant through `series` from `start_soc`.

    Policies are asked one after the other, in the mapping's order, so two models need not be held
    at once. After an invalid answer the plant runs the worst level by exact Q, as a table's
    headline regret counts it. `on_hour` hears how many of all answers are in. Raises DataError for
    no series, a short one or two of one name, ConfigError for a start content outside the tank.
    """
    names = [one.name for one in series]
    if not names or len(set(names)) < len(names):
        raise DataError(f"the series must be one or more, each with its own name, not {names}")
    if random_seeds < 1:
        raise ConfigError(f"random_seeds must be 1 or more, not {random_seeds}")
    if taken := {*policies} & {*BASELINES, "optimal", "random"}:
        raise ConfigError(f"a policy may not have the name of a rule: {', '.join(sorted(taken))}")
    check_start(plant, start_soc)
    episodes = [solve_series(plant, one) for one in series]
    total, done = len(policies) * sum(decisions(plant, one) for one in series), 0

    def tick(answers: int) -> None:
        nonlocal done
        done += answers
        if on_hour is not None:
            on_hour(done, total)

    trips = {name: _asked(name, episodes, start_soc, ask, tick) for name, ask in policies.items()}
    optimum = [_trip("optimal", e, e.optimum(start_soc)) for e in episodes]
    trips["optimal"] = optimum
    for name, rule in BASELINES.items():
        trips[name] = [_ruled(name, e, start_soc, rule) for e in episodes]
    dice = [
        [_ruled("random", e, start_soc, random_rule(seed + i)) for e in episodes]
        for i in range(random_seeds)
    ]
    figures = {name: _figures(own, optimum) for name, own in trips.items()}
    figures["random"] = np.mean([_figures(own, optimum) for own in dice], axis=0)
    trips["random"] = dice[0]
    by_series = [own[i] for i in range(len(episodes)) for own in trips.values()]
    return LoopResult(plant, float(start_soc), names, by_series, figures, seed)


class _Underway:
    """One series' loop, stopped at its next question; hours that need no decision run by."""

    def __init__(self, episode: Episode, start_soc: float):
        self.episode, self.soc = episode, float(start_soc)
        self.actions: list[int] = []
        self.reasons: list[str] = []
        self._coast()

    @property
    def t(self) -> int:
        return len(self.actions)

    @property
    def arrived(self) -> bool:
        return self.t == self.episode.length

    def question(self) -> Question:
        series = self.episode.series
        prompt = write_prompt(self.episode.solution.plant, series, self.t, self.soc)
        return Question(series.name, self.t, prompt)

    def take(self, action: int | None, reason: str) -> None:
        """Run the answer, the worst level if it is invalid, and go on to the next question."""
        solution = self.episode.solution
        if action is None:
            action = int(np.argmin(solution.q(self.t, self.soc)))
        elif not 0 <= action < solution.plant.n_actions:
            raise ConfigError(f"level {action} was chosen, of {solution.plant.n_actions} from 0")
        self._step(action, reason)
        self._coast()

    def run(self, start_soc: float) -> Rollout:
        """Repeat the whole way with the solver's own bookkeeping."""
        return self.episode.follow(lambda t, soc: self.actions[t], start_soc)

    def _coast(self) -> None:
        solution = self.episode.solution
        while not self.arrived and not solution.plant.decides(solution.hours_T[self.t]):
            self._step(0, OFF)

    def _step(self, action: int, reason: str) -> None:
        s, t = self.episode.solution, self.t
        self.soc = float(s.plant.step(self.soc, action, s.load_T[t], s.carbon_T[t]).next_soc)
        self.actions.append(action)
        self.reasons.append(str(reason))


def _asked(
    name: str, episodes: list[Episode], start_soc: float, ask: Ask, tick: Callable[[int], None]
) -> list[Trip]:
    """Return the trips of a policy that is asked for all waiting series at once."""
    loops = [_Underway(episode, start_soc) for episode in episodes]
    while waiting := [loop for loop in loops if not loop.arrived]:
        replies = ask([loop.question() for loop in waiting])
        for loop, (action, reason) in zip(waiting, replies, strict=True):
            loop.take(action, reason)
        tick(len(waiting))
    return [_trip(name, loop.episode, loop.run(start_soc), loop.reasons) for loop in loops]


def _ruled(name: str, episode: Episode, start_soc: float, rule: Rule) -> Trip:
    plant, series = episode.solution.plant, episode.series
    run = episode.follow(lambda t, soc: rule(plant, series, t, soc), start_soc)
    return _trip(name, episode, run)


def _trip(name: str, episode: Episode, run: Rollout, reasons: list[str] | None = None) -> Trip:
    solution = episode.solution
    if reasons is None:
        reasons = [str(Reason.OK) if d else OFF for d in solution.plant.decides(solution.hours_T)]
    regret = [float(solution.regret(t, run.soc[t], a)) for t, a in enumerate(run.action)]
    return Trip(name, episode, run, reasons, np.array(regret))


def _figures(trips: list[Trip], optimum: list[Trip]) -> Floats:
    """Return FIGURES of every trip, [series, 8]."""
    rows = []
    for (_, episode, run, reasons, regret), best in zip(trips, optimum, strict=True):
        plant, score = episode.solution.plant, episode.score(run)
        emitted, unmet, left = run.emitted.sum(), run.unmet.sum(), run.soc[-1]
        net = emitted - episode.terminal_value * left * plant.reward_scale
        answers = [reason for reason in reasons if reason != OFF]
        invalid = sum(reason != Reason.OK for reason in answers) / len(answers)
        cost, loss = net + plant.penalty * unmet, episode.score(best.run) - score
        rows.append([net, emitted, unmet, left, cost, loss, regret.sum(), invalid])
    return np.array(rows, dtype=np.float64)
