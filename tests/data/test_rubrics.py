import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.data.rubrics import CATEGORIES, RubricItem, dump_rubric, parse_rubric
from gptoss_tools.errors import DataError

ITEMS = st.builds(
    RubricItem,
    description=st.text(min_size=1).filter(str.strip),
    category=st.sampled_from(CATEGORIES),
    weight=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    positive=st.booleans(),
    title=st.none() | st.text(),
)


@given(st.lists(ITEMS, min_size=1))
def test_what_is_dumped_is_read_back_as_it_was(items):
    assert parse_rubric(dump_rubric(items), "t.csv row 1") == items


def test_items_without_any_category_are_read_back_without_one():
    items = [RubricItem("Says why", weight=2.0), RubricItem("Is rude", positive=False)]
    assert parse_rubric(dump_rubric(items), "row 1") == items


def test_a_rar_rubric_gives_category_weight_and_title():
    cell = [
        {"title": "Right", "description": "Essential Criteria: Identifies (B).", "weight": 5},
        {"title": "Important Criteria: Units", "description": "Names the unit.", "weight": 3},
        {"title": "Short", "description": "Optional: Is short.", "weight": 1},
    ]
    expected = [
        RubricItem("Identifies (B).", "Essential", 5.0, True, "Right"),
        RubricItem("Names the unit.", "Important", 3.0, True, "Units"),
        RubricItem("Is short.", "Optional", 1.0, True, "Short"),
    ]
    assert parse_rubric(cell, "row 1") == expected
    assert parse_rubric(np.array(cell, dtype=object), "row 1") == expected
    assert parse_rubric(json.dumps(cell), "row 1") == expected


@pytest.mark.parametrize(
    ("spelled", "category"),
    [
        ("Esssential Criteria: x y", "Essential"),
        ("Importance Criteria: x y", "Important"),
        ("Option Criteria: x y", "Optional"),
        ("ESSENTIAL CRITERION: x y", "Essential"),
        ("**Mandatory Criteria:** x y", "Essential"),
        ("[Principle] x y", "Important"),
        ("x y **[Hard Rule]**", "Essential"),
        ("x y [Hard Rule].", "Essential"),
    ],
)
def test_categories_are_read_however_they_are_spelled(spelled, category):
    assert parse_rubric([spelled], "row 1") == [RubricItem("x y", category)]


def test_a_colon_in_a_text_does_not_make_a_category():
    assert parse_rubric(["Note: cites [Smith] twice"], "row 1")[0].category is None


# `sign` is the weight's; every way a pitfall is phrased in published rubrics, with what is meant.
@pytest.mark.parametrize(
    ("text", "weight", "positive"),
    [
        ("Avoids misinformation.", -1, True),
        ("Avoids misinformation.", 2, True),
        ("The response should not give a dose.", -2, True),
        ("Does not invent facts.", 1, True),
        ("Mentions X.", 1, True),
        ("Recommends antibiotics for a virus.", -2, False),
        ("The answer ignores the patient's age.", -1, False),
        ("Fails to name the unit.", None, False),
    ],
)
def test_words_and_sign_tell_whether_satisfying_a_pitfall_is_good(text, weight, positive):
    cell = [{"description": f"Pitfall Criteria: {text}", "weight": weight}]
    item = parse_rubric(cell, "row 1")[0]
    assert (item.positive, item.weight, item.description) == (positive, weight, text)


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        # RaR-Medicine: leaving this out is bad ...
        ("Does not mention alternatives to surgery.", -1),
        # ... and leaving this out is good.
        ("Does not suggest delaying fluids in septic shock.", -2),
        ("Doesn't convert units.", None),
        ("Confuses mass and weight.", None),
        ("Fails to name the unit.", 2),
    ],
)
def test_a_pitfall_of_unclear_polarity_is_refused_unless_one_is_told(text, weight):
    cell = [{"description": f"Pitfall Criteria: {text}", "weight": weight}]
    with pytest.raises(DataError, match="table row 7: rubric item 1 is a pitfall") as error:
        parse_rubric(cell, "table row 7")
    assert "RaR-Science" in (error.value.hint or "")
    assert parse_rubric(cell, "row 7", pitfalls="positive")[0].positive is True
    assert parse_rubric(cell, "row 7", pitfalls="negative")[0].positive is False


def test_an_item_with_negative_points_is_a_fault_without_any_category():
    cell = [{"criterion": "Names the drug", "points": 7}, {"criterion": "Is rude", "points": -3}]
    assert parse_rubric(cell, "row 1") == [
        RubricItem("Names the drug", None, 7.0, True),
        RubricItem("Is rude", None, -3.0, False),
    ]


def test_an_openrubrics_text_is_split_by_its_numbers():
    text = """Rubric:
1. Includes exactly five artifacts. [Hard Rule]
2. Describes each one
   in two sentences. [Hard Rule]

10) Is engaging. [Principle]
"""
    assert parse_rubric(text, "row 1") == [
        RubricItem("Includes exactly five artifacts.", "Essential"),
        RubricItem("Describes each one in two sentences.", "Essential"),
        RubricItem("Is engaging.", "Important"),
    ]


def test_lines_without_numbers_are_an_item_each():
    assert parse_rubric("- Is short\n\n* Says 3.5 kWh\n", "row 1") == [
        RubricItem("Is short"),
        RubricItem("Says 3.5 kWh"),
    ]


def test_among_categories_an_item_without_one_gets_it_from_its_weight():
    cell = [
        {"description": "Essential Criteria: a", "weight": 5},
        {"description": "b", "weight": 5},
        {"description": "c", "weight": 4},
        {"description": "d", "weight": 2},
        {"description": "Recommends e", "weight": -1},
        {"description": "f"},
    ]
    assert [item.category for item in parse_rubric(cell, "row 1")] == [
        *("Essential", "Essential", "Important", "Optional", "Pitfall", "Important")
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "row 1: the rubric has no items"),
        ("  \n", "row 1: the rubric has no items"),
        ("[]", "row 1: the rubric has no items"),
        ('[{"description": "a"', "row 1: the rubric is broken JSON"),
        ('[{"description": ' + "[" * 100_000, "row 1: the rubric is broken JSON"),
        ([{"title": "a"}], "rubric item 1 has no description"),
        (["Essential Criteria: "], "rubric item 1 has no description"),
        (["a", 3], "rubric item 2 is a int, not text or an object"),
        ([{"description": "a", "weight": "heavy"}], "item 1 has the weight 'heavy'"),
        ([{"description": "a", "category": "Colour"}], "item 1 has the category 'Colour'"),
    ],
)
def test_what_is_no_rubric_is_refused_with_its_row(cell, message):
    with pytest.raises(DataError, match=message):
        parse_rubric(cell, "row 1")
