"""gptoss make-dataset."""

from __future__ import annotations

from typing import Any

from ..console import out
from ..load import Loaded
from ..settings import MakeDatasetSettings
from .common import new_file
from .options import command


@command(
    "make-dataset",
    MakeDatasetSettings,
    examples=[
        "gptoss make-dataset --out data/mine.csv --episodes 24 --profile duck --seed 7",
        "gptoss make-dataset --series load.csv --load-column 'load [kW]' --carbon-column co2",
        "gptoss make-dataset --levels 0 --levels 0.5 --levels 1 --out data/three.csv",
    ],
)
def make_dataset(settings: MakeDatasetSettings, loaded: Loaded) -> None:
    """Write a table of storage decisions with exact values.

    A heat pump charges a cold tank; the value of every action comes from backward recursion. Series
    are generated (duck, noon, peak) or read from hourly CSV files of your own.
    """
    import pandas as pd

    from ..core.table_writer import TableWriter
    from ..tes.dataset import from_series
    from ..tes.dataset import make_dataset as generate
    from ..tes.plant import Plant
    from ..tes.series import read_series

    target = new_file(settings.out, settings.overwrite)
    plant = Plant(
        levels=tuple(settings.levels),
        rated_kw=settings.rated_kw,
        cop=settings.cop,
        capacity_kwh=settings.capacity_kwh,
        loss=settings.loss,
        penalty=settings.penalty,
    )
    rows: dict[str, Any] = {
        "on_path_rows": settings.on_path_rows or None,
        "off_path_rows": settings.off_path_rows,
        "start_soc": settings.start_soc,
        "seed": settings.seed,
    }
    if settings.series:
        columns = (settings.time_column, settings.load_column, settings.carbon_column)
        read = [read_series(path, *columns, settings.series_encoding) for path in settings.series]
        table = pd.concat([from_series(plant, s, **rows) for s in read], ignore_index=True)
    else:
        table = generate(
            plant, profile=settings.profile, episodes=settings.episodes, days=settings.days, **rows
        )
    best = table["optimal_action"].tolist()
    data = {
        "out": target,
        "written": not settings.dry_run,
        "rows": len(table),
        "episodes": table["episode"].nunique(),
        "actions": plant.n_actions,
        "optimal_shares": [best.count(k) / len(best) for k in range(plant.n_actions)],
    }
    if not settings.dry_run:
        with TableWriter(target) as writer:
            writer.write(table)
    out.result(data)
    out.hint(f"gptoss convert-harmony {target}")
