"""gptoss convert-harmony."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import ConvertHarmonySettings
from .common import show_rows
from .options import command


@command(
    "convert-harmony",
    ConvertHarmonySettings,
    positional="paths",
    examples=[
        "gptoss convert-harmony data/x.csv",
        "gptoss convert-harmony tables/ --reasoning-effort low --date 2025-11-06",
        "gptoss convert-harmony 'tables/*.jsonl' --format messages --overwrite",
    ],
)
def convert_harmony(settings: ConvertHarmonySettings, loaded: Loaded) -> None:
    """Turn legacy prompts into Harmony prompts.

    Writes NAME_harmony beside every table (CSV, JSONL, Parquet). Lines that begin with `system:` or
    `user:` change the role. Prompts that are Harmony already pass through unchanged. The text is
    what gpt-oss's own chat template gives; the date in it is pinned.
    """
    from ..data.convert import convert

    with out.progress("rows", None, every=100_000) as update:
        files = convert(
            settings.paths,
            suffix=settings.suffix,
            overwrite=settings.overwrite,
            encoding=settings.encoding,
            delimiter=settings.delimiter,
            shard=settings.shard,
            date=settings.date,
            reasoning_effort=settings.reasoning_effort,
            model_identity=settings.model_identity,
            format=settings.format,
            dry_run=settings.dry_run,
            on_progress=show_rows(update),
        )
    rows = [
        {
            "source": str(f.source),
            "target": str(f.target),
            "rows": f.rows,
            "converted": f.converted,
            "passed through": f.passed_through,
        }
        for f in files
    ]
    for file in files:
        if file.stale:
            out.warning(f"{file.stale} was made from an older {file.target.name}")
    out.table(rows, {"files": [vars(f) for f in files], "written": not settings.dry_run})
    out.hint("gptoss calc-reward " + " ".join(str(f.target) for f in files[:3]))
