"""What several commands share: the cache folder, the Hub token, what a user asks which model."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import out
from ..errors import ConfigError, RunFolderError
from ..load import Loaded, cache_dir
from ..settings import AnswerSettings, GenerateSettings, TestAdapterSettings

if TYPE_CHECKING:  # both load heavy libraries, which no help should pay for
    from ..data.decisions import DecisionTable
    from ..evaluation.policy import Answer, Policy
    from ..training.outcome import Outcome


def build_tiny_first(name: str) -> None:
    """Build the tiny model, with progress, if `name` means it and it is not there yet."""
    if name != "tiny":
        return
    from ..models.tiny_cache import tiny_path

    with contextlib.ExitStack() as stack:
        shown: list[Callable[..., None]] = []

        def show(step: int, steps: int, loss: float) -> None:
            if not shown:  # usually it is there and nothing is to be shown
                bar = out.progress("building the tiny model, step", None, every=100)
                shown.append(stack.enter_context(bar))
            shown[0](step, total=steps, loss=loss)

        tiny_path(cache_dir(), on_progress=show)


def train_or_plan(settings: Any, loaded: Loaded, base: str) -> Outcome | None:
    """Train as the settings of any training command say; with dry_run show the plan, return None.

    `base` is the model that training starts from: `tiny` is built first.
    """
    from ..training.train import plan, train

    explicit = loaded.explicit - {"resume", "allow_changes"}
    if settings.dry_run:
        out.result(plan(settings, explicit))
        return None
    if settings.resume is None:
        build_tiny_first(base)
    with out.progress("step", settings.max_steps) as update:
        return train(
            settings,
            explicit=explicit,
            origins=loaded.origins,
            command=loaded.line,
            on_step=show_step(update),
            on_notice=out.notice,
            cache_dir=cache_dir(),
        )


def measured(outcome: Outcome) -> dict[str, Any]:
    """Return what is known of a finished run: GRPO has no use for a held-out loss, say."""
    return {name: value for name, value in vars(outcome).items() if value is not None}


def hub_token() -> str | None:
    """Return the Hub token of HF_TOKEN or of `hf auth login`, or None."""
    from huggingface_hub import get_token

    return get_token()


def new_file(name: str, overwrite: bool) -> Path:
    """Return the path of an output file; RunFolderError if it is in the way."""
    path = Path(name)
    if path.is_dir():
        raise RunFolderError(f"`{path}` is a folder, not a file", "name a file with --out")
    if path.exists() and not overwrite:
        raise RunFolderError(f"`{path}` exists", "pass --overwrite, or name another --out")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunFolderError(f"`{path}` cannot be written: {parent} is no folder to write in")
    return path


def given_prompt(settings: AnswerSettings) -> str | None:
    """Return the text of --prompt (`-`: standard input) or --prompt-file; None without either."""
    if settings.prompt is not None and settings.prompt_file is not None:
        raise ConfigError("`prompt` and `prompt_file` are both given", "give one of them")
    if settings.prompt == "-":
        return sys.stdin.read()
    if settings.prompt is not None or settings.prompt_file is None:
        return settings.prompt
    try:
        return Path(settings.prompt_file).read_text(encoding=settings.encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`prompt_file` {settings.prompt_file} cannot be read: {error}") from None


def asked_table(settings: GenerateSettings | TestAdapterSettings, loaded: Loaded) -> DecisionTable:
    """Read the tables of --data, their prompts rendered as TARGET reads them."""
    from ..evaluation.sources import find_source
    from ..models.chats import table_for

    source = find_source(settings.target, settings.model if "model" in loaded.explicit else None)
    fetch = not getattr(settings, "dry_run", False)  # test-adapter has none
    return table_for(source.base, settings, fetch=fetch)


def said_action(answer: Answer, names: Sequence[str]) -> str:
    """Return an answer's action as people read it: its index, its name, or why there is none."""
    action = answer.decision.action
    if action is None and answer.decision.reason == "ok":
        return "nothing to choose"
    if action is None:
        return f"none ({answer.decision.reason.value})"
    return f"{action} ({names[action]})" if names else str(action)


def asked_policy(settings: GenerateSettings | TestAdapterSettings, loaded: Loaded) -> Policy:
    """Load TARGET, on --model where that was given by hand, and say what it is."""
    from ..evaluation.policy import load_policy, packed_by_itself

    build_tiny_first(settings.target)
    policy = load_policy(
        settings.target,
        base=settings.model if "model" in loaded.explicit else None,
        model=settings,
        cache_dir=cache_dir(),
    )
    out.notice(policy.source.label)
    if note := packed_by_itself(policy, settings.experts):
        out.notice(note)
    return policy


def show_rows(
    update: Callable[..., None], seen: dict[str, int] | None = None
) -> Callable[[Path, int], None]:
    """Return a listener for (file, rows done in it); `seen` keeps the last count of every file."""
    counts = {} if seen is None else seen

    def show(path: Path, rows: int) -> None:
        counts[str(path)] = rows
        update(sum(counts.values()), file=path.name)

    return show


def show_step(update: Callable[..., None]) -> Callable[[Any], None]:
    """Return a listener that hands training's progress to a progress line."""

    def show(step: Any) -> None:
        update(step.step, total=step.max_steps, **step.facts())

    return show
