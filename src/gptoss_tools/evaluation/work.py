"""What an evaluation needs before a model loads: tables, series, whom to ask, where to write.

Everything that can be refused is refused here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from gptoss_tools.core.runs import Run
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.data.tables import is_missing
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.evaluation import closed_loop
from gptoss_tools.evaluation.earned import by_reward
from gptoss_tools.evaluation.metrics import Choices
from gptoss_tools.evaluation.sources import Source, find_source
from gptoss_tools.models.chats import table_for
from gptoss_tools.rewards.combined import Rewards, needed
from gptoss_tools.settings import EvaluateSettings, RewardSettings
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.series import Series

HOME = Path("evaluations")
BASELINE = "baseline_"
ROW = "row"


@dataclass(frozen=True)
class Work:
    """An evaluation that can begin: what is asked of whom, and where it is written.

    `rewards` say what answers earn where the table has no values to measure regret by.
    """

    settings: EvaluateSettings
    source: Source
    base: Source | None
    table: DecisionTable
    episodes: list[str] | None
    series: list[Series]
    plant: Plant
    folder: Path
    rewards: Rewards | None = None

    @property
    def questions(self) -> int:
        """How many answers it takes in all."""
        rows = len(self.table) * (1 + self.settings.samples + (self.base is not None))
        hours = sum(closed_loop.decisions(self.plant, series) for series in self.series)
        return rows + hours * (1 + (self.base is not None))


def prepare(
    settings: EvaluateSettings, on_model: str | None = None, given: Collection[str] = ()
) -> Work:
    """Check everything that can be checked without a model; `on_model` replaces an adapter's base.

    `given` names the settings that are no defaults: rewards are otherwise those of the run. Raises
    RunFolderError for a target that is not there, DataError for tables or series.
    """
    source = find_source(settings.target, on_model)
    rewards = None
    table = table_for(source.base, settings, fetch=not settings.dry_run)
    if by_reward(table):
        wanted = rewards_of(settings, source, given)
        rewards, needs = Rewards(wanted), needed(wanted)
        if not needs["values"]:
            table.require(needs["columns"])
    if table.q is None and (rewards is None or needed(wanted)["values"]):
        raise DataError(
            f"{', '.join(settings.data)} has no q_action columns",
            hint="regret needs the value of every action: q_action_0, q_action_1, ...; other "
            "rewards than `decision` do not: --reward, gptoss rewards lists them",
        )
    if rewards is not None and (settings.samples or settings.closed_loop):
        raise ConfigError(
            "`samples` and `closed_loop` need tables with values for every action",
            hint="leave them out: these tables are measured by rewards",
        )
    plant = Plant(
        levels=tuple(settings.levels),
        rated_kw=settings.rated_kw,
        cop=settings.cop,
        capacity_kwh=settings.capacity_kwh,
        loss=settings.loss,
        penalty=settings.penalty,
    )
    columns = (settings.time_column, settings.load_column, settings.carbon_column)
    series = closed_loop.read_all(settings.closed_loop, *columns, settings.series_encoding)
    return Work(
        settings=settings,
        source=source,
        base=base_source(settings, source),
        table=table,
        episodes=_episodes(table, settings, rewards, given),
        series=series,
        plant=plant,
        folder=Path(settings.out) if settings.out else default_folder(source, settings.target),
        rewards=rewards,
    )


def tables_of(source: Source) -> list[str] | None:
    """Return the tables of a run whose rewards need no values: those it was measured on, or read.

    None for every other target: what a decision is worth can be shown on any table with values.
    """
    run = {} if source.run is None else Run(source.run).settings
    if "reward" not in run:
        return None
    if needed(rewards_of(RewardSettings.model_validate({}), source))["values"]:
        return None
    return run["eval_data"] if run.get("eval_steps") else run["data"]


def rewards_of(
    settings: RewardSettings, source: Source, given: Collection[str] = ()
) -> RewardSettings:
    """Return the settings of rewards: the given ones, the others as the target's run has them."""
    run = {} if source.run is None else Run(source.run).settings
    own = {name: run[name] for name in RewardSettings.model_fields if name in run}
    if "reward" in given:
        own.pop("reward_weights", None)  # they were of other rewards
    names = (n for n in RewardSettings.model_fields if n in given or n not in own)
    wanted = own | {name: getattr(settings, name) for name in names}
    try:
        return RewardSettings.model_validate(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(f"{part}: " for part in first["loc"][:1])
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"rewards as {source.label} has them and as given do not go together: {name}{said}",
            hint="--reward and --reward-weights name others",
        ) from error


def _episodes(
    table: DecisionTable,
    settings: EvaluateSettings,
    rewards: Rewards | None,
    given: Collection[str],
) -> list[str] | None:
    """Return each row's episode; questions without one, unlike decisions, stand alone."""
    column = settings.episode_column
    if rewards is not None and "episode_column" not in given and column not in table.columns:
        return None
    return episodes_of(table, column)


def episodes_of(table: DecisionTable, column: str) -> list[str] | None:
    """Return each row's episode, None for `row` (every row alone); DataError without the column."""
    if column == ROW:
        return None
    if column not in table.columns:
        raise DataError(
            f"the tables have no column {column}: rows of one episode are correlated, and the "
            "confidence intervals must know them",
            hint="--episode-column names another column; --episode-column row: rows stand alone",
        )
    cells = table.columns[column].tolist()
    for row, cell in enumerate(cells):
        if is_missing(cell):
            raise DataError(f"{table.where(row)}, column {column}: the episode has no name")
    return [str(cell) for cell in cells]


def baselines_of(table: DecisionTable) -> dict[str, Choices]:
    """Return what the table's own rules chose: its columns `baseline_NAME`; empty is no choice."""
    found: dict[str, Choices] = {}
    for column in map(str, table.columns.columns):
        if not column.startswith(BASELINE):
            continue
        actions = np.full(len(table), -1, dtype=np.int64)
        for row, cell in enumerate(table.columns[column].tolist()):
            if is_missing(cell):
                continue
            actions[row] = _index(cell, int(table.n_actions[row]), table.where(row), column)
        found[column.removeprefix(BASELINE)] = Choices.of(actions)
    return found


def default_folder(source: Source, target: str) -> Path:
    """Return where an evaluation goes: into the run, or evaluations/NAME for anything else."""
    if source.run is not None and source.adapter != Path(target):
        return source.run / "evaluation"
    parts = [part for part in Path(target).parts if part not in ("/", "..", ".")]
    return HOME / "-".join(parts[-3:] or ["model"])


def _index(cell: Any, n_actions: int, where: str, column: str) -> int:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        number = -1.0
    if not (number.is_integer() and 0 <= number < n_actions):
        raise DataError(f"{where}, column {column}: {cell!r} is not one of the row's actions")
    return int(number)


def base_source(settings: EvaluateSettings, source: Source) -> Source | None:
    """Return what to compare with: the source itself, its adapter put aside, or another model."""
    if not settings.compare:
        return None
    if settings.compare_with is not None:
        other = find_source(settings.compare_with)
        if other.adapter is not None:
            raise ConfigError(
                f"`compare_with` is {settings.compare_with}, an adapter: name a model"
            )
        return source if source.adapter and other.base == source.base else other
    return source if source.adapter is not None else None
