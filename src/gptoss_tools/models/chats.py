"""How a model's prompts are written, found out from its name before anything of it loads."""

from __future__ import annotations

import json
from pathlib import Path

from gptoss_tools.core.chat import HarmonyPrompts, Prompts, RawPrompts, chat_of
from gptoss_tools.models.loading import load_tokenizer
from gptoss_tools.models.machine import PUBLISHED
from gptoss_tools.models.names import TINY


def prompts_for(
    name: str | Path,
    *,
    date: str | None = None,
    model_identity: str | None = None,
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
    return chat_of(load_tokenizer(name), date=date, model_identity=model_identity)


def reads_harmony(name: str | Path) -> bool:
    """Return whether a name means a gpt-oss, as far as that is known without the Hub."""
    if str(name) == TINY or str(name) in PUBLISHED:
        return True
    try:
        config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "gpt_oss"
