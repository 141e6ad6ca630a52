"""How a model's prompts are written, found out from its name before anything of it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_tools.chat.families import HarmonyPrompts, Prompts, RawPrompts, chat_of
from gptoss_tools.data.decisions import DecisionTable, load_table
from gptoss_tools.errors import GptossError
from gptoss_tools.models.loading import load_tokenizer
from gptoss_tools.models.machine import PUBLISHED
from gptoss_tools.models.names import TINY, is_gpt_oss


def prompts_for(
    name: str | Path,
    *,
    date: str | None = None,
    model_identity: str | None = None,
    reasoning_effort: str = "medium",
    fetch: bool = True,
) -> Prompts:
    """Return how prompts for a model are written; gpt-oss needs no file of it, others a tokenizer.

    Without `fetch` nothing comes from the Hub, and prompts for a model there stay as they are.
    Raises as `load_tokenizer`, and ConfigError for a model without a chat template.
    """
    if reads_harmony(name):
        return HarmonyPrompts(date, model_identity)
    if not fetch and not Path(name).is_dir():
        return RawPrompts()
    return chat_of(
        load_tokenizer(name),
        date=date,
        model_identity=model_identity,
        reasoning_effort=reasoning_effort,
    )


def table_for(name: str | Path, settings: Any, *, fetch: bool) -> DecisionTable:
    """Read the tables of `settings.data` as a model is asked their prompts; values may be absent.

    `fetch` as for `prompts_for`; raises as it and `load_table` do.
    """
    written = {
        "date": settings.date,
        "model_identity": settings.model_identity,
        "reasoning_effort": settings.reasoning_effort,
    }
    return load_table(
        settings.data,
        encoding=settings.encoding,
        delimiter=settings.delimiter,
        actions=settings.actions,
        values=False,
        prompts=prompts_for(name, **written, fetch=fetch),
        **written,
    )


def reads_harmony(name: str | Path) -> bool:
    """Return whether a name means a gpt-oss, as far as that is known without the Hub."""
    return str(name) == TINY or str(name) in PUBLISHED or is_gpt_oss(name)


def can_answer(name: str | Path) -> bool:
    """Return whether a model, whose tokenizer is at hand, is one that prompts are written for."""
    try:
        prompts_for(name)
    except GptossError:
        return False
    return True
