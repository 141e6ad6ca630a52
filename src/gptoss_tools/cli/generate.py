"""gptoss generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..console import align, out
from ..errors import ConfigError
from ..load import Loaded
from ..settings import GenerateSettings
from .common import asked_policy, asked_table, given_prompt, new_file, said_action
from .options import command


@command(
    "generate",
    GenerateSettings,
    positional="target",
    examples=[
        "gptoss generate runs/first --prompt-file prompt.txt",
        "gptoss generate exports/first --data data/heldout --out answers.jsonl",
        "echo 'Fill the tank now? Answer [0] or [1].' | gptoss generate tiny --prompt -",
    ],
)
def generate(settings: GenerateSettings, loaded: Loaded) -> None:
    """Answer a prompt, or every row of a table.

    TARGET is a run, an adapter, an exported model or a base model. One prompt is streamed; a table
    is answered in batches, its actions read and, where it holds values, scored.
    """
    prompt = given_prompt(settings)
    if (prompt is None) == (not settings.data):
        raise ConfigError(
            "generate needs either a prompt or a table", "give --prompt, --prompt-file or --data"
        )
    if prompt is None:
        _table(settings, loaded)
    else:
        _one(settings, loaded, prompt)


def _one(settings: GenerateSettings, loaded: Loaded, prompt: str) -> None:
    if settings.dry_run:
        out.result({"prompts": 1, "target": settings.target})
        return
    stream = asked_policy(settings, loaded).stream(
        prompt,
        len(settings.actions) or None,
        names=settings.actions,
        decoding=settings,
        settings=settings,
        action_pattern=settings.action_pattern,
    )
    current: Any = ...
    for channel, piece in stream:
        if channel != current:
            out.text(("" if current is ... else "\n") + f"[{channel or 'no channel'}] ")
            current = channel
        out.text(piece)
    answer = stream.answer
    out.text("\n")
    names = settings.actions or None
    out.result(_record(answer, names), f"action: {said_action(answer, settings.actions)}")


def _table(settings: GenerateSettings, loaded: Loaded) -> None:
    from ..data.table_writer import TableWriter
    from ..evaluation.scoring import score

    table = asked_table(settings, loaded)
    target = new_file(settings.out, settings.overwrite) if settings.out else None
    if settings.dry_run:
        out.result({"prompts": len(table), "target": settings.target, "out": settings.out})
        return
    policy, answers = asked_policy(settings, loaded), []
    with out.progress("answer", len(table), every=settings.batch_size) as update:
        for answer in policy.answer(
            table.prompts,
            table.n_actions.tolist(),
            names=table.names,
            decoding=settings,
            prompt=settings,
            action_pattern=settings.action_pattern,
        ):
            answers.append(answer)
            update(len(answers))
    answers.sort(key=lambda answer: answer.index)
    if target:
        import pandas as pd

        rows = []
        for answer in answers:
            names = None if table.names is None else table.names[answer.index]
            rows.append({"row": table.where(answer.index), **_record(answer, names)})
        with TableWriter(target) as writer:
            # As objects: beside a None, numbers would become floats.
            writer.write(pd.DataFrame(rows, dtype=object))
    summary = {"target": policy.source.label, **score(answers, table)}
    if target:
        summary["out"] = target
    rows = [{"": name, "value": value} for name, value in summary.items()]
    out.result(summary, align(rows))


def _record(answer: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """Return an answer as data; with `names` (empty: this row is numbered) also the name chosen."""
    action = answer.decision.action
    name = names[action] if names and action is not None else None
    return {
        "action": action,
        **({} if names is None else {"name": name}),
        "reason": answer.decision.reason.value,
        "analysis": answer.completion.channel_text("analysis"),
        "final": answer.completion.final,
        "completion": answer.text,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 4),
    }
