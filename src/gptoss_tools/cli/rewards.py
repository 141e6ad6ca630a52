"""gptoss rewards."""

from __future__ import annotations

from typing import Any

from ..console import out
from ..load import Loaded
from ..settings import RewardsSettings
from .options import command


@command(
    "rewards",
    RewardsSettings,
    positional="names",
    examples=[
        "gptoss rewards",
        "gptoss rewards exact my_rewards:politeness",
        "gptoss rewards --json",
    ],
)
def rewards(settings: RewardsSettings, loaded: Loaded) -> None:
    """List what train-grpo can reward, and what each reward reads.

    Columns are the table's, settings show the values in force here. A reward of your own is a
    function of one answer: docs/rewards.md.
    """
    from ..rewards.combined import all_kinds, find

    kinds = [find(name) for name in settings.names] or all_kinds()
    values = settings.model_dump()
    listed = [
        {
            "name": kind.name,
            "summary": kind.summary,
            "columns": list(kind.columns),
            "action_values": kind.values,
            "settings": {name: values[name] for name in kind.reads},
        }
        for kind in kinds
    ]
    out.result({"rewards": listed}, "\n\n".join(map(_text, listed)))
    out.hint(f"gptoss train-grpo --reward {listed[0]['name']}")


def _text(one: dict[str, Any]) -> str:
    columns = ["a reward per action"] * one["action_values"] + one["columns"]
    lines = [f"{one['name']}: {one['summary']}", f"  columns: {', '.join(columns) or 'none'}"]
    return "\n".join([*lines, *(f"  {name} = {v!r}" for name, v in one["settings"].items())])
