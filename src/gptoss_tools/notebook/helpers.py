"""The pieces of a session on their own: a prompt, the data, the rewards."""

from __future__ import annotations

import glob
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from gptoss_tools.chat.actions import parse_action
from gptoss_tools.chat.completions import split_text
from gptoss_tools.chat.families import chat_of
from gptoss_tools.core.stream import value_columns
from gptoss_tools.load import cache_dir
from gptoss_tools.models.loading import load_tokenizer
from gptoss_tools.notebook.settings import SessionSettings
from gptoss_tools.rewards import Answered
from gptoss_tools.rewards.combined import Rewards
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training.preparation import GrpoPrepared, prepare
from gptoss_tools.training.reading import read_tables

RewardFunction = Callable[..., list[float | None]]


def format_prompt(question: str, config: TrainSettings, rubric: str | None = None) -> str:
    """Return the question as the settings' model reads it, up to where its answer begins.

    A rubric stands before the question. Runs never show rubrics to the model: whoever can read the
    marking scheme can copy it.
    """
    text = f"Rubric:\n{rubric}\n\n{question}" if rubric else question
    tokenizer = load_tokenizer(config.model, cache_dir=cache_dir())
    chat = chat_of(tokenizer, date=config.date, model_identity=config.model_identity)
    message = {"role": "user", "content": text}
    return chat.prompt([message], reasoning_effort=config.reasoning_effort)


def prepare_datasets(config: TrainSettings) -> tuple[Dataset, Dataset | None]:
    """Read the tables to train on and the held-out ones as datasets; load no model.

    The second is None where `eval_data` is the default and not there. Raises DataError naming file,
    row and column.
    """
    config = SessionSettings.of(config)
    # Nothing is loaded here, so the model's memory is no reason to refuse.
    prepared = prepare(config.training(), cache_dir=cache_dir(), held_bytes=sys.maxsize)
    return prepared.dataset, held_out_rows(config, prepared)


def held_out_rows(config: SessionSettings, prepared: GrpoPrepared) -> Dataset | None:
    """Return the held-out rows: prompt, n_actions, q_action_k and names where there are any."""
    table = prepared.held_out
    if table is None:
        usual = TrainSettings.model_fields["eval_data"].default
        if config.eval_data == usual and not any(glob.glob(path) for path in config.eval_data):
            return None
        table = read_tables(prepared.settings, config.eval_data)
    columns: dict[str, Any] = {
        "row": list(range(len(table))),
        "prompt": table.prompts,
        "n_actions": table.n_actions.tolist(),
    }
    if table.q is not None:
        columns |= value_columns(table.q, "q")
    if table.names is not None:
        columns["actions"] = table.names
    return Dataset.from_dict(columns)


def create_reward_functions(config: TrainSettings) -> list[RewardFunction]:
    """Return a function per reward of the settings, each `f(prompts, completions, **columns)`.

    Completions are texts: what the model says to the user, or a whole answer with its markers.
    Columns are lists with a value per completion, named as in the table; the result too has one
    each, None where the completion would be masked, unweighted. Raises ConfigError for what is no
    reward.
    """
    return [_alone(config, name) for name in config.reward]


def _alone(config: TrainSettings, name: str) -> RewardFunction:
    settings = config.model_copy(update={"reward": [name], "reward_weights": []})
    rewards = Rewards(settings)

    def score(
        prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        rows = [{n: values[i] for n, values in columns.items()} for i in range(len(prompts))]
        each = zip(prompts, completions, rows, strict=True)
        return rewards([_answered(config, *one) for one in each]).total

    score.__name__ = next(iter(rewards.kinds))
    return score


def _answered(config: TrainSettings, prompt: str, text: str, row: dict[str, Any]) -> Answered:
    whole = text if "<|message|>" in text else f"<|channel|>final<|message|>{text}<|return|>"
    completion = split_text(whole)
    in_turn = (f"reward_action_{k}" for k in itertools.count())
    rewards_K = [float(row[name]) for name in itertools.takewhile(row.__contains__, in_turn)]
    names = row.get("actions") or config.actions or None
    count = row.get("n_actions", len(rewards_K) or len(names or ()))
    decision = parse_action(completion, int(count), config.action_pattern, names)
    return Answered(prompt, completion, {**row, "prompt": prompt}, decision, rewards_K)
