"""The form of the prompts that a model was trained on, which whoever serves it has to keep.

Read from the run's own completions.csv, so that what counts is what the model really saw: tables
may pin a date and a reasoning level of their own. Without that file the run's settings count, and
without a run the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tools.chat.harmony import render
from gptoss_tools.core.runs import Run, open_run
from gptoss_tools.data.tables import read_chunks
from gptoss_tools.errors import DataError
from gptoss_tools.settings import TrainSettings

TODAY = "<today>"
"""Stands in a system message for the day on which it is read."""

_USED = ("date", "reasoning_effort", "model_identity", "temperature", "top_p", "top_k")
_USED += ("max_prompt_length", "max_completion_length")
_HEAD = re.compile(
    r"\s*<\|start\|>system<\|message\|>(?P<system>.*?)<\|end\|>"
    r"(?:<\|start\|>developer<\|message\|># Instructions\n\n(?P<developer>.*?)\n\n<\|end\|>)?"
    r"<\|start\|>user<\|message\|>",
    re.DOTALL,
)


@dataclass(frozen=True)
class PromptForm:
    """The system message's text, the developer's if all prompts share one, and settings.

    `settings` holds date, reasoning_effort, model_identity, temperature, top_p, top_k and both
    lengths. `notes` are sentences about what could not be told.
    """

    system: str
    developer: str | None
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def context(self) -> int:
        """Tokens that prompt and answer need together, rounded up to a power of two."""
        room = self.settings["max_prompt_length"] + self.settings["max_completion_length"]
        return 1 << (int(room) - 1).bit_length()

    @property
    def effort(self) -> str:
        """The reasoning level in the system message."""
        found = re.search(r"^Reasoning: (\w+)$", self.system, re.MULTILINE)
        return found[1] if found else str(self.settings["reasoning_effort"])

    @property
    def date(self) -> str | None:
        """The day in the system message, None where it is the day of reading."""
        found = re.search(r"^Current date: (\d{4}-\d\d-\d\d)$", self.system, re.MULTILINE)
        return found[1] if found else None


def training_form(adapter_dir: Path) -> PromptForm:
    """The form of the prompts that the run of this adapter was trained on."""
    run = open_run(adapter_dir)
    return form_of(_prompts(run), run.settings)


def form_of(prompts: Iterable[str], settings: Mapping[str, Any]) -> PromptForm:
    """What Harmony prompts have in common; `settings` are the run's, {} where there is none."""
    defaults = {name: TrainSettings.model_fields[name].default for name in _USED}
    known = {name: settings.get(name, default) for name, default in defaults.items()}
    systems: set[str] = set()
    developers: set[str | None] = set()
    notes = []
    for prompt in prompts:
        head = _HEAD.match(prompt)
        if head is None:
            continue
        systems.add(head["system"])
        developers.add(head["developer"])
    if len(systems) > 1:
        notes.append("The prompts of training differ in their system message; this is one of them.")
    if len(developers) > 1:
        notes.append("The prompts of training differ in their developer message: send your own.")
    system = min(systems) if systems else _from_settings(known)
    return PromptForm(
        system=system,
        developer=developers.pop() if len(developers) == 1 else None,
        settings=known,
        notes=tuple(notes),
    )


def _from_settings(known: Mapping[str, Any]) -> str:
    day = known["date"] or "2000-01-01"
    text = render(
        [{"role": "user", "content": "?"}],
        date=day,
        reasoning_effort=known["reasoning_effort"],
        model_identity=known["model_identity"],
    )
    head = _HEAD.match(text)
    if head is None:
        raise DataError("gpt-oss's chat template writes another system message than expected")
    system = head["system"]
    return system if known["date"] else system.replace(f"date: {day}", f"date: {TODAY}", 1)


def _prompts(run: Run) -> Iterator[str]:
    path = Path(run.settings.get("completion_log_path") or run.completions_path)
    if not path.is_file():
        return
    try:
        for frame in read_chunks(path):
            if "prompt" in frame:
                yield from frame["prompt"].dropna().astype(str).unique()
    except DataError:
        return  # a log that was cut off says less, not something else
