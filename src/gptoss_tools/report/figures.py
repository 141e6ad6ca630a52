"""Which sections a report has, from top to bottom, and what says so where one is empty.

Each section function takes all runs and returns a Section, None where it has nothing to say; to add
one, write it and name it in SECTIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptoss_tools.report import curves, decisions, heldout, loop, maps, ranking, tables, tasks
from gptoss_tools.report.collect import RunRecord
from gptoss_tools.report.parts import Panel, Section, Table

Records = Sequence[RunRecord]


def regret(records: Records) -> Section | None:
    if _all_by_reward(records):
        return None
    panel = ranking.policies(records)
    return Section(
        "regret",
        "Held-out regret",
        "What a decision loses against the best one, on average, in the unit of Q: 0 is perfect. "
        "An invalid answer counts as the worst action.",
        [*([panel] if panel else []), heldout.over_steps(records)],
        tables=_tables(tables.phases, records),
        missing=_unevaluated(records),
    )


def answers(records: Records) -> Section:
    panels = [curves.invalid(record, place) for place, record in enumerate(records)]
    lead = "Sampled completions that named no action, by what was wrong with them."
    return Section("invalid", "Invalid answers", lead, panels, columns=2)


def actions(records: Records) -> Section | None:
    deciding = [(record, place) for place, record in enumerate(records) if not record.by_reward]
    if not deciding:
        return None
    panels = [curves.actions(record, place) for record, place in deciding]
    lead = "A policy that always says the same, or shuns an action that is often best, shows here."
    return Section("actions", "Actions", lead, panels, columns=2)


def calendar(records: Records) -> Section | None:
    if _all_by_reward(records):
        return None
    panels = maps.maps(records)
    lead = "One line per episode and day, one column per hour; greedy answers to held-out rows."
    missing = list(_unevaluated(records))
    for record in records:
        if record.by_reward:
            continue
        if record.decisions and not maps.read_calendar(record.decisions).cells:
            missing.append(
                f"{record.label}: the tables have no readable column `timestamp`, so no map by hour"
            )
    return Section("map", "Hour by hour", lead, panels, columns=3, missing=missing)


def closed_loop(records: Records) -> Section | None:
    if _all_by_reward(records):
        return None
    panel = loop.strip(records)
    lead = "Each policy drives the plant on its own: what it stores now is what it has later."
    missing = [
        f"no closed loop yet: gptoss evaluate {record.path} --closed-loop FILES"
        for record in records
        if not record.closed_loop and not record.by_reward
    ]
    return Section(
        "loop",
        "Closed loop",
        lead,
        [panel] if panel else [],
        tables=[table] if (table := loop.summary(records)) else [],
        missing=missing,
    )


def reward(records: Records) -> Section:
    lead = "What training maximises: the mean over sampled answers."
    panel = curves.reward(records)
    return Section("reward", "Reward", lead, [panel], tables=_tables(tables.rewards, records))


def health(records: Records) -> Section:
    panels = curves.multiples(records)
    missing = [] if panels else [curves.untrained(records[0])]
    lead = "Signs of trouble: entropy that vanishes, answers that grow, gradients that jump."
    return Section("health", "How training goes", lead, panels, columns=3, missing=missing)


def mistakes(records: Records) -> Section | None:
    if _all_by_reward(records):
        return None
    panels: list[Panel | None] = []
    for place, record in enumerate(records):
        if not record.by_reward and (record.evaluation is not None or record.decisions):
            panels += [
                decisions.confusion(record, place),
                decisions.stakes(record, place),
                decisions.calibration(record, place),
            ]
    lead = (
        "Which actions are mistaken for which, and whether the mistakes are made where it counts."
    )
    drawn = [panel for panel in panels if panel is not None]
    missing = _unevaluated(records)
    columns = 3 if any(panel.id.startswith("calibration") for panel in drawn) else 2
    return Section("mistakes", "Mistakes", lead, drawn, columns, missing=missing)


SECTIONS: tuple[Callable[[Records], Section | None], ...] = (
    *(regret, answers, actions, calendar, closed_loop, reward, health, mistakes),
    tasks.section,
)


def sections(records: Records) -> list[Section]:
    """Return the sections with figures; the worst decisions and the settings follow in the page."""
    made = [make(records) for make in SECTIONS]
    return [section for section in made if section is not None]


def _tables(make: Callable[[RunRecord, int], Table | None], records: Records) -> list[Table]:
    made = [make(record, place) for place, record in enumerate(records)]
    return [table for table in made if table is not None]


def _all_by_reward(records: Records) -> bool:
    return all(record.by_reward for record in records)


def _unevaluated(records: Records) -> list[str]:
    return [decisions.unevaluated(record) for record in records if record.evaluation is None]
