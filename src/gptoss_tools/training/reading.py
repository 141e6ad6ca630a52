"""The tables of a GRPO run: the rows to train on, the held-out ones, and what is left out of them.

Every refusal names file and row. Leaves out tokens and TRL's columns: training.configuring.
"""

from __future__ import annotations

import glob
import hashlib
import json
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from gptoss_tools.chat.families import Prompts
from gptoss_tools.data.columns import is_blank
from gptoss_tools.data.decisions import DecisionTable, load_table
from gptoss_tools.errors import DataError
from gptoss_tools.evaluation.earned import by_reward
from gptoss_tools.rewards.combined import needed, reads_only_values
from gptoss_tools.rewards.rubric import refuse_broken
from gptoss_tools.settings import RewardSettings, TrainSettings
from gptoss_tools.training.configuring import token_counts
from gptoss_tools.training.zero_signal import telling_rows


def read_tables(
    settings: TrainSettings,
    paths: list[str],
    home: str | None = None,
    chat: Prompts | None = None,
) -> DecisionTable:
    """Read tables; paths that are not here but where the run began are taken from there.

    `chat` writes the prompts, gpt-oss's way of doing it where there is none.
    """
    if home is not None:
        paths = [
            str(Path(home) / p) if not glob.glob(p) and glob.glob(str(Path(home) / p)) else p
            for p in paths
        ]
    table = load_table(
        paths,
        encoding=settings.encoding,
        delimiter=settings.delimiter,
        date=settings.date,
        reasoning_effort=settings.reasoning_effort,
        model_identity=settings.model_identity,
        actions=settings.actions,
        prompts=chat,
        **needed(settings),
    )
    if "rubric" in table.columns:  # hours before a broken one would be met
        for row, cell in enumerate(table.columns["rubric"]):
            refuse_broken(cell, table.where(row), settings)
    return table


def training_table(settings: TrainSettings, home: str | None, chat: Prompts) -> DecisionTable:
    """Read the tables to train on."""
    table = read_tables(settings, settings.data, home, chat)
    if table.rewards is None and needed(settings)["values"]:
        paths = settings.data
        raise DataError(
            f"{', '.join(paths)} hold Q values but no reward columns",
            hint="gptoss calc-reward " + " ".join(paths),
        )
    return table


def held_out_table(
    settings: TrainSettings,
    home: str | None,
    chat: Prompts,
    tokenizer: PreTrainedTokenizerFast,
    room: int | None,
) -> DecisionTable | None:
    """Read the held-out tables if the run is to be measured on them."""
    if settings.eval_steps is None:
        return None
    table = read_tables(settings, settings.eval_data, home, chat)
    if table.q is None and not by_reward(table):
        raise DataError(
            f"{', '.join(settings.eval_data)} holds no q_action columns to measure regret by",
            hint="name other tables with --eval-data",
        )
    lengths = token_counts(tokenizer, table.prompts)
    if room is not None and max(lengths) >= room:
        row = lengths.index(max(lengths))
        raise DataError(
            f"{table.where(row)}: the prompt has {lengths[row]} tokens, and the model reads {room} "
            "in all"
        )
    return table


def data_hash(table: DecisionTable, settings: RewardSettings) -> str:
    """Return the sha256 of all that the chosen rewards see: prompts, rewards, Q values, cells."""
    digest = hashlib.sha256(table.sha256.encode())
    if table.q is not None:
        digest.update((table.q + 0.0).astype("<f8").tobytes())
    if not reads_only_values(settings):
        for row in range(len(table)):
            digest.update(json.dumps(table.cells(row), sort_keys=True).encode())
    return digest.hexdigest()


def unscorable(table: DecisionTable, settings: TrainSettings) -> list[str]:
    """Say how many rows lack what a reward reads; raise DataError where none has it."""
    notes = []
    for column, reward in needed(settings)["columns"].items():
        empty = sum(is_blank(cell) for cell in table.columns[column])
        if empty == len(table):
            raise DataError(
                f"{', '.join(settings.data)}: the column {column}, which the reward {reward} "
                "reads, is empty in every row"
            )
        if empty:
            notes.append(f"{empty} of {len(table)} rows have no {column} for the reward {reward}")
    return notes


def telling(dataset: Dataset, settings: TrainSettings) -> tuple[Dataset, int]:
    """Leave out rows whose actions all earn the same, where asked; return how many those are."""
    if settings.zero_signal == "keep" or settings.reward != ["decision"]:
        return dataset, 0
    rows = telling_rows(dataset)
    if not rows:
        raise DataError(
            "every row of the table earns the same for all of its actions",
            hint="there is nothing to learn: look at tau and at the values",
        )
    return dataset.select(rows), len(dataset) - len(rows)
