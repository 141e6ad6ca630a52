"""gptoss prepare-data."""

from __future__ import annotations

from ..console import align, out
from ..load import Loaded
from ..settings import PrepareDataSettings
from .common import show_rows
from .options import command


@command(
    "prepare-data",
    PrepareDataSettings,
    positional="paths",
    examples=[
        "gptoss prepare-data openai/gsm8k --subset main --ask-for-tags --out data/gsm8k",
        "gptoss prepare-data OpenRubrics/OpenRubrics --max-examples 2000 --out data/rubrics",
        "gptoss prepare-data chats.jsonl --system-prompt 'Be brief.' --out-format parquet",
        "gptoss prepare-data data/tes.csv --split-by episode --dry-run",
    ],
)
def prepare_data(settings: PrepareDataSettings, loaded: Loaded) -> None:
    """Turn published datasets into tables of prompts, train and test.

    Reads OpenRubrics, Rubrics as Rewards, GSM8K, conversations, instructions and tables with values
    per action (docs/datasets.md). Writes OUT/train and OUT/test, with the columns prompt, answer,
    reference, rubric, id and source, and OUT/report.json: how many rows were read, kept, and left
    out for which reason. A row's side depends on its prompt and the seed alone.
    """
    from ..data.prepare import prepare

    with out.progress("rows", None, every=100_000) as update:
        done = prepare(settings, on_progress=show_rows(update))
    report = done.report
    lines = [align(report.lines())]
    if report.columns_left_out:
        names = ", ".join(sorted(report.columns_left_out))
        lines.append(f"columns left out (lists, objects, or names that are taken): {names}")
    for source in report.sources:
        lines.append(f"{source.source}: {source.kept} of {source.read} rows ({source.format})")
    data = {
        "out": done.out,
        "train": done.train,
        "test": done.test,
        "written": done.written,
        "report": report.as_json(settings.model_dump()),
    }
    out.result(data, "\n".join(lines))
    if done.train is None or (done.test is None and settings.train_fraction < 1):
        out.warning(f"there are no rows for {'training' if done.train is None else 'evaluation'}")
    if done.train is not None and done.written:
        held_out = f" --eval-data {done.test}" if done.test is not None else ""
        known = all(source.format == "decisions" for source in report.sources)
        reward = "" if known else " --reward NAME"
        train = f"gptoss train-grpo --data {done.train}{held_out}{reward}"
        out.hint(f"gptoss check-data {done.out}; {train}")
