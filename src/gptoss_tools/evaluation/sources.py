"""What a user's words mean: a target is a model or an adapter on one, a prompt is text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tools.chat.families import HarmonyPrompts, Prompts
from gptoss_tools.core.runs import HOME, LATEST, open_run
from gptoss_tools.errors import DataError
from gptoss_tools.models.names import base_of
from gptoss_tools.settings import PromptSettings

Prompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Source:
    """What a target means: a base model by name, and perhaps an adapter folder on it.

    `step` is the training step of the adapter and `run` its run folder, None where unknown.
    """

    base: str
    adapter: Path | None
    label: str
    step: int | None = None
    run: Path | None = None


def find_source(target: str | Path, base: str | None = None) -> Source:
    """Tell what `target` is: a run, checkpoint or adapter folder, a model folder, a Hub id, `tiny`.

    `base` replaces the adapter's own base model. Raises RunFolderError for a run that is not there.
    """
    path = Path(target)
    if not path.exists() and not _means_a_folder(path):
        return Source(str(target), None, f"base model {target}")
    if _is_model(path):
        return Source(str(target), None, f"model in {target}")
    run = open_run(target)
    if run.selected is None and (whole := run.model()) is not None:
        return Source(str(whole), None, f"model of {run.path}", run=run.path)
    adapter = run.adapter()
    # The folder it was trained on, if it is still there: what `tiny` or a path of the run means may
    # have changed since.
    trained_on = base_of(adapter.path)
    named = base or trained_on
    if not base and not Path(trained_on).is_dir():
        named = run.settings.get("model") or trained_on
    shown = base or run.settings.get("model") or named
    folder = run.path if run.config else None
    return Source(str(named), adapter.path, f"{adapter.label}, on {shown}", adapter.step, folder)


def _means_a_folder(path: Path) -> bool:
    """Whether a path that is not there was meant as one: `runs/x` also looks like a Hub id."""
    inside = path.parent != Path(".") and path.parent.is_dir()
    return inside or path.parts[:1] in (HOME.parts, ("exports",)) or path.name == LATEST


def _is_model(path: Path) -> bool:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def as_prompt(prompt: Prompt, chat: Prompts, settings: PromptSettings | None = None) -> str:
    """Prompt text for the model: what is written for it stays, all else is rendered by `chat`.

    Raises DataError for a prompt that does not end where the assistant begins.
    """
    effort = (settings or PromptSettings.model_validate({})).reasoning_effort
    if not isinstance(prompt, str):
        return chat.prompt(prompt, reasoning_effort=effort)
    if not prompt.strip():
        raise DataError("the prompt is empty")
    return chat.of_text(prompt, reasoning_effort=effort)


def as_harmony(prompt: Prompt, settings: PromptSettings | None = None) -> str:
    """Prompt text for gpt-oss: `as_prompt` without a model at hand."""
    settings = settings or PromptSettings.model_validate({})
    return as_prompt(prompt, HarmonyPrompts(settings.date, settings.model_identity), settings)
