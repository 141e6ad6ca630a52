"""gptoss test-adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..console import align, out
from ..errors import DataError, GptossError
from ..load import Loaded
from ..settings import RewardSettings, TestAdapterSettings
from .common import asked_policy, asked_table, given_prompt, said_action
from .options import command

if TYPE_CHECKING:
    from ..data.decisions import DecisionTable
    from ..evaluation.policy import Answer
    from ..evaluation.sources import Source


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
    action is worth there; of a row without actions, the answer and what the run's rewards give for
    it. Greedy unless --sample is given.
    """
    from ..evaluation.sources import find_source

    prompt, table, row = given_prompt(settings), None, settings.row - 1
    names: list[str] = settings.actions
    source = find_source(settings.target)  # a wrong target is said before a wrong table
    if prompt is None:
        if loaded.origins.get("data") == "default":
            settings = _on_own_tables(settings, source)
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
    lines = [answer.completion.transcript()]
    if table is not None and not values:
        said = _earned(source, table, row, answer)
        data |= said
        lines += [data["row"], *(f"{name}: {_shown(value)}" for name, value in said.items())]
    else:
        lines.append(f"action: {said_action(answer, names)}")
        lines += [data["row"], align(values)] if values else []
    out.result(data, "\n".join(lines))


def _on_own_tables(settings: TestAdapterSettings, source: Source) -> TestAdapterSettings:
    """Ask a run that learned from rows without values what such a row asks."""
    from ..evaluation.work import tables_of

    try:
        own = tables_of(source)
    except GptossError:  # a reward that is not there any more: the default is as good
        own = None
    return settings if own is None else settings.model_copy(update={"data": own})


def _earned(source: Source, table: DecisionTable, row: int, answer: Answer) -> dict[str, Any]:
    """Return the answer to a row without actions, what was expected, and what the run gives."""
    from ..evaluation.earned import answer_to
    from ..evaluation.work import rewards_of
    from ..rewards.combined import Rewards, needed

    wanted = rewards_of(RewardSettings.model_validate({}), source)
    answered = answer_to(table, row, answer.completion, answer.decision)
    said: dict[str, Any] = {"answer": answered.answer(wanted.answer_tags)}
    if "answer" in table.columns:
        said["expected"] = answered.row["answer"]
    try:
        if needed(wanted)["values"]:
            return said
        scores = Rewards(wanted)([answered])
    except GptossError as error:  # a judge that is not there, say: the answer is
        out.warning(f"what the answer earns is not known: {error}")
        return said
    if len(scores.apart) > 1:
        said |= {f"reward {name}": each[0] for name, each in scores.apart.items()}
    return said | {"reward": scores.total[0]}


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
