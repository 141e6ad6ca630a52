"""gptoss calc-reward."""

from __future__ import annotations

from ..console import align, out
from ..load import Loaded
from ..settings import CalcRewardSettings
from .common import show_rows
from .options import command


@command(
    "calc-reward",
    CalcRewardSettings,
    positional="paths",
    examples=[
        "gptoss calc-reward --tau 0.05",
        "gptoss calc-reward data/x_harmony.csv --overwrite",
        "gptoss calc-reward tables/ --method log-regret --tau 2 --missing mask",
    ],
)
def calc_reward(settings: CalcRewardSettings, loaded: Loaded) -> None:
    """Turn action values into rewards.

    boltzmann: the softmax of Q / tau over a row's actions. log-regret: 1 - ln(1 + regret / tau),
    which also tells a disaster from a mistake (docs/learning.md compares them). Writes
    NAME_with_reward beside every table, or the table itself with --overwrite. Prints how far the
    values lie apart, how many rows come out flat, and the tau that suggests.
    """
    from ..data.score import BOUNDED, SATURATED, score

    with out.progress("rows", None, every=100_000) as update:
        result = score(
            settings.paths,
            tau=settings.tau,
            method=settings.method,
            missing=settings.missing,
            overwrite=settings.overwrite,
            encoding=settings.encoding,
            delimiter=settings.delimiter,
            shard=settings.shard,
            dry_run=settings.dry_run,
            on_progress=show_rows(update),
        )
    stats = result.stats
    rows = [
        {
            "source": str(f.source),
            "target": ", ".join(map(str, f.targets)),
            "rows": f.rows,
            "dropped": f.dropped,
            "masked": f.masked,
        }
        for f in result.files
    ]
    quantiles = [
        {"Q": name, "10 %": values[0], "median": values[1], "90 %": values[2]}
        for name, values in (("best - second", stats.gap), ("best - worst", stats.range))
        if values
    ]
    advice = f"; the median gap suggests --tau {stats.suggested_tau}" if stats.suggested_tau else ""
    if stats.saturated and settings.method in BOUNDED:
        advice += (
            f"\nin {stats.saturated:.1%} of them the worst action loses more than {SATURATED:g} "
            "tau and earns the same 0 as smaller mistakes: --method log-regret tells them apart"
        )
    data = {**vars(result), "files": [vars(f) for f in result.files], "stats": vars(stats)}
    out.result(
        {**data, "written": not settings.dry_run},
        f"{align(rows)}\n\n{align(quantiles)}\n"
        f"{stats.flat_share:.1%} of {stats.rows} rows are flat at tau {settings.tau}{advice}",
    )
    out.hint("gptoss check-data " + " ".join(settings.paths))
