"""gptoss check-data."""

from __future__ import annotations

from pathlib import Path

from ..console import out
from ..errors import DataError
from ..load import Loaded
from ..settings import CheckDataSettings
from .common import show_rows
from .options import command


@command(
    "check-data",
    CheckDataSettings,
    positional="paths",
    examples=["gptoss check-data", "gptoss check-data tables/ --encoding cp932 --json"],
)
def check_data(settings: CheckDataSettings, loaded: Loaded) -> None:
    """List every problem of every table at once.

    Checks what training would read: columns, prompts, values, rewards, or answers and rubrics where
    a table has no values, and repeated rows. Exit code 2 if there is any problem.
    """
    from ..data.check import check

    rows: dict[str, int] = {}
    prompts: dict[str, str] = {}
    with out.progress("rows", None, every=100_000) as update:
        problems = check(
            settings.paths,
            encoding=settings.encoding,
            delimiter=settings.delimiter,
            shard=settings.shard,
            on_progress=show_rows(update, rows),
            on_prompts=lambda path, summary: prompts.update({str(path): summary}),
        )
    data = {"rows": rows, "prompts": prompts, "problems": [vars(p) for p in problems]}
    held = [f"{path}: {summary}" for path, summary in prompts.items()]
    count = f"{sum(rows.values())} rows in {len(rows)} files"
    out.result(data, "\n".join([*map(str, problems), *held, count]))
    if problems:
        found = len(problems)
        raise DataError(f"{found} problem{'s' if found > 1 else ''} in the tables")
    # The default holds held-out tables too, which are not for training; so does a prepared folder.
    named = [f" --data {path}" for path in settings.paths if "paths" in loaded.explicit]
    if prompts or any(Path(path).stem == "train" for path in rows):
        named = [f" --data {path}" for path in rows if Path(path).stem != "test"]
    chosen = " --reward NAME (gptoss rewards lists them)" if prompts else ""
    out.hint("gptoss train-grpo" + "".join(named) + chosen)
