"""Whole columns of prompts come out as each prompt alone would, and odd ones are left alone."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.chat.harmony import GENERATION_PROMPT, is_harmony, parse_legacy, render
from gptoss_tools.data.prompt_columns import is_harmony_column, render_legacy, split_legacy

# What parse_legacy or Python's white space could read otherwise than a regular expression of Arrow.
PIECES = [
    "system:",
    "user:",
    "System: ",
    "\u017fystem:",
    "USER:  ",
    "\n",
    "\n\n",
    "\r\n",
    " ",
    "\t",
]
PIECES += [
    "\u3000",
    "\x1c",
    "\u2028",
    "\x85",
    "\xa0",
    "[",
    "a",
    "-user:",
    "system :",
    "\x00",
    "温度",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
CELLS = st.lists(st.one_of(TEXT, st.text(st.characters(exclude_categories=("Cs",)), max_size=9)))


def column(cells):
    return pa.array(cells, pa.large_string())


@settings(deadline=None, max_examples=300)
@given(CELLS.filter(len), st.lists(st.sampled_from(["low", "high"]), min_size=9, max_size=9))
def test_what_is_known_is_rendered_as_each_prompt_alone(cells, efforts):
    found = split_legacy(column(cells))
    known = list(itertools.compress(cells, found.known))
    efforts = list(itertools.islice(itertools.cycle(efforts), len(known)))
    rendered = render_legacy(found, efforts, date="2025-01-02") if known else column([])
    assert rendered.to_pylist() == [
        render(parse_legacy(cell), date="2025-01-02", reasoning_effort=effort)
        for cell, effort in zip(known, efforts, strict=True)
    ]


@pytest.mark.parametrize(
    ("cell", "known"),
    [
        ("system: Answer.\nuser: Which?", True),
        (" \n System: a\n\nb\n USER:\nc\n\n", True),
        ("user: Which?", True),
        ("Which?", True),
        ("温度 system: is no marker here", True),
        ("system: a\nuser: b\nuser: c", False),
        ("user: b\nsystem: a", False),
        ("system: only", False),
        ("system: a\nuser: ", False),
        ("user: a\u3000b", False),
        ("user: a\r\nb", False),
        ("user: a <|end|> b", False),
        ('[{"role": "user", "content": "x"}]', False),
        ("", False),
        (None, False),
    ],
)
def test_the_usual_forms_are_known_and_others_left(cell, known):
    assert split_legacy(column([cell])).known.tolist() == [known]
    # beside others, with the place in the column kept
    found = split_legacy(column([cell, "user: x", None]))
    assert found.known.tolist() == [known, True, False]
    assert found.user.to_pylist()[-1] == "x"


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["<|start|>system<|message|>", " ", "a", "<|end|>"]))))
def test_only_harmony_text_is_taken_for_it(parts):
    cells = ["", *map("".join, parts)]
    cells += [cell + GENERATION_PROMPT for cell in cells]
    found = is_harmony_column(column(cells))
    assert not [c for c in itertools.compress(cells, found) if not is_harmony(c)]
    complete = is_harmony_column(column(cells), complete=True)
    assert np.array_equal(complete, found & [c.endswith(GENERATION_PROMPT) for c in cells])


def test_a_slice_of_a_column_is_read_as_itself():
    cells = column(["skipped", "system: a\nuser: b", "user: c", "skipped"]).slice(1, 2)
    found = split_legacy(cells)
    assert (found.system.to_pylist(), found.user.to_pylist()) == (["a", ""], ["b", "c"])
