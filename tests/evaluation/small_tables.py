"""Tables in memory, and ways to make many of them up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.evaluation.metrics import Choices

NAN, INF = float("nan"), float("inf")


def make_table(q, rewards=None, **columns) -> DecisionTable:
    """A table of rows [R][K]; lists of unequal length are padded, and that is their K."""
    lengths = [len(row) for row in q or rewards or []]

    def padded(block):
        return np.array([[*row, *[NAN] * (max(lengths) - len(row))] for row in block], float)

    return DecisionTable(
        prompts=[""] * len(lengths),
        q=padded(q) if q else None,
        rewards=padded(rewards) if rewards else None,
        n_actions=np.array(lengths),
        columns=pd.DataFrame(columns, dtype=object),
        sha256="",
        _starts=[0],
        _paths=["t.csv"],
    )


def reordered(table: DecisionTable, order: list[int]) -> DecisionTable:
    """The same rows, with Q and rewards, in another order."""
    assert table.q is not None and table.rewards is not None
    return dataclasses.replace(
        table, q=table.q[order], rewards=table.rewards[order], n_actions=table.n_actions[order]
    )


VALUES = st.one_of(
    st.integers(-3, 3).map(float),  # ties
    st.floats(-1000, 1000).map(lambda v: round(v, 3)),
    st.sampled_from([NAN, -INF]),
)


@st.composite
def tables(draw, max_rows: int = 6) -> DecisionTable:
    """Rows of 2 to 4 actions with ties, unknown and infeasible values, at least one finite."""
    lengths = draw(st.lists(st.integers(2, 4), min_size=1, max_size=max_rows))
    q = [draw(st.lists(VALUES, min_size=n, max_size=n)) for n in lengths]
    q[0][0] = draw(st.integers(-3, 3).map(float))
    rewards = [draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)) for n in lengths]
    return make_table(q, rewards)


@st.composite
def policies(draw, table: DecisionTable) -> Choices:
    """Any actions that the rows have, and invalid answers."""
    return Choices.of([draw(st.integers(-1, int(n) - 1)) for n in table.n_actions])


@st.composite
def tables_with(draw, count: int, max_rows: int = 6) -> tuple[DecisionTable, list[Choices], list]:
    """A table, `count` policies on it, and an episode for each row."""
    table = draw(tables(max_rows))
    chosen = [draw(policies(table)) for _ in range(count)]
    return table, chosen, [draw(st.sampled_from("abc")) for _ in range(len(table))]
