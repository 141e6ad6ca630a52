"""gptoss test-adapter."""

from __future__ import annotations

from ..console import align, out
from ..errors import DataError
from ..load import Loaded
from ..settings import TestAdapterSettings
from .common import asked_policy, asked_table, given_prompt, said_action
from .options import command


@command(
    "test-adapter",
    TestAdapterSettings,
    positional="target",
    examples=[
        "gptoss test-adapter",
        "gptoss test-adapter runs/first --data data/heldout --row 3",
        "gptoss test-adapter runs/first/adapter --prompt-file prompt.txt --experts packed",
    ],
)
def test_adapter(settings: TestAdapterSettings, loaded: Loaded) -> None:
    """Show what an adapter answers to one prompt.

    Prints the completion by channel, the action it means, and, for a row of a table, what every
    action is worth there. Greedy unless --sample is given.
    """
    from ..evaluation.sources import find_source

    prompt, table, row = given_prompt(settings), None, settings.row - 1
    names: list[str] = settings.actions
    find_source(settings.target)  # a wrong target is said before a wrong table
    if prompt is None:
        table = asked_table(settings, loaded)
        if row >= len(table):
            raise DataError(f"`row` is {settings.row}, but the tables have {len(table)} rows")
        prompt = table.prompts[row]
        names = table.names[row] if table.names else []
    policy = asked_policy(settings, loaded)
    actions = int(table.n_actions[row]) if table is not None else len(names) or None
    [answer] = policy.answer(
        [prompt],
        actions,
        names=[names],
        decoding=settings,
        prompt=settings,
        action_pattern=settings.action_pattern,
    )
    decision = answer.decision
    values = (
        []
        if table is None
        else [
            {
                "action": k,
                **({"name": names[k]} if names else {}),
                "chosen": "*" if k == decision.action else "",
                **({"q": float(table.q[row, k])} if table.q is not None else {}),
                **({"reward": float(table.rewards[row, k])} if table.rewards is not None else {}),
            }
            for k in range(int(table.n_actions[row]))
        ]
    )
    data = {
        "adapter": policy.source.label,
        "row": table.where(row) if table is not None else None,
        "channels": [{"channel": m.channel, "text": m.content} for m in answer.completion.messages],
        "stop": answer.completion.stop,
        "action": decision.action,
        **({"name": None if decision.action is None else names[decision.action]} if names else {}),
        "reason": decision.reason.value,
        "tokens": answer.tokens,
        "values": values,
    }
    lines = [answer.completion.transcript(), f"action: {said_action(answer, names)}"]
    lines += [data["row"], align(values)] if values else []
    out.result(data, "\n".join(lines))
