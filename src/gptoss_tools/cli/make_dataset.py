"""gptoss make-dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import out
from ..errors import ConfigError, RunFolderError
from ..load import Loaded
from ..settings import MakeDatasetSettings
from .common import new_file
from .options import command

if TYPE_CHECKING:  # heavy, and no help should pay for it
    from ..tes.series import Series


@command(
    "make-dataset",
    MakeDatasetSettings,
    examples=[
        "gptoss make-dataset --out data/mine.csv --episodes 24 --profile duck --seed 7",
        "gptoss make-dataset --series load.csv --load-column 'load [kW]' --carbon-column co2",
        "gptoss make-dataset --seed 99 --out data/next.csv --write-series series",
        "gptoss make-dataset --levels 0 --levels 0.5 --levels 1 --out data/three.csv",
    ],
)
def make_dataset(settings: MakeDatasetSettings, loaded: Loaded) -> None:
    """Write a table of storage decisions with exact values.

    A heat pump charges a cold tank; the value of every action comes from backward recursion. Series
    are generated (duck, noon, peak) or read from hourly CSV files of your own.
    """
    from ..data.table_writer import TableWriter
    from ..tes.dataset import from_series, make_series
    from ..tes.plant import Plant
    from ..tes.series import read_all, write_series

    if settings.series and settings.write_series is not None:
        raise ConfigError(
            "`series` and `write_series` are both given, and only generated series are written",
            "leave one of them out",
        )
    target = new_file(settings.out, settings.overwrite)
    plant = Plant(
        levels=tuple(settings.levels),
        rated_kw=settings.rated_kw,
        cop=settings.cop,
        capacity_kwh=settings.capacity_kwh,
        loss=settings.loss,
        penalty=settings.penalty,
    )
    if settings.series:
        columns = (settings.time_column, settings.load_column, settings.carbon_column)
        series = read_all(settings.series, *columns, settings.series_encoding)
    else:
        series = make_series(
            plant,
            profile=settings.profile,
            episodes=settings.episodes,
            days=settings.days,
            seed=settings.seed,
        )
    files = _series_files(settings, series)
    table = from_series(
        plant,
        *series,
        start_soc=settings.start_soc,
        on_path_rows=settings.on_path_rows or None,
        off_path_rows=settings.off_path_rows,
        seed=settings.seed,
    )
    best = table["optimal_action"].tolist()
    data: dict[str, Any] = {
        "out": target,
        "written": not settings.dry_run,
        "rows": len(table),
        "episodes": table["episode"].nunique(),
        "actions": plant.n_actions,
        "optimal_shares": [best.count(k) / len(best) for k in range(plant.n_actions)],
    }
    if settings.write_series is not None:
        data["series"] = settings.write_series
    if not settings.dry_run:
        for file, one in zip(files, series, strict=False):  # no files without --write-series
            file.parent.mkdir(parents=True, exist_ok=True)
            write_series(one, file)
        with TableWriter(target) as writer:
            writer.write(table)
    out.result(data)
    out.hint(f"gptoss convert-harmony {target}")


def _series_files(settings: MakeDatasetSettings, series: list[Series]) -> list[Path]:
    """Return the files of --write-series, none without it; RunFolderError if one is in the way."""
    if settings.write_series is None:
        return []
    files = [Path(settings.write_series) / f"{one.name}.csv" for one in series]
    for file in files:
        if file.exists() and not settings.overwrite:
            raise RunFolderError(
                f"`{file}` exists", "pass --overwrite, or name another --write-series"
            )
        new_file(str(file), overwrite=True)
    return files
