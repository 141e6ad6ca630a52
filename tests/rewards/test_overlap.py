"""rubric-overlap: figures by hand, and that the rubric itself does not pay."""

from __future__ import annotations

import json

import pytest
from answers_lab import answered, earned
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptoss_tools.data.rubrics import RubricItem, dump_rubric
from gptoss_tools.errors import TrainingError
from gptoss_tools.rewards.overlap import coverage, own_share, uncopied, words_of

LINES = (
    "1. The response names the mitochondria as the source of energy. [Hard Rule]\n"
    "2. The response explains how glucose becomes energy in simple words. [Principle]\n"
)
ITEMS = [
    RubricItem("Names the mitochondria as the source of energy", "Essential", 5.0),
    RubricItem("Explains how glucose becomes energy", "Important", 3.0, title="Glucose"),
    RubricItem("Claims that plants eat sunlight", "Pitfall", -2.0, positive=False),
]
RUBRICS = [LINES, dump_rubric(ITEMS)]


def score(said: str, rubric: str, **row: str) -> float:
    (found,) = earned("rubric-overlap", answered(said, rubric=rubric, **row))
    assert found is not None
    return found


def test_coverage_weighs_a_keyword_by_how_rare_it_is_in_the_rubric():
    rubric = words_of("energy energy glucose, of")  # weights 1/2 and 1; `of` is too short
    assert coverage(words_of("Energy!"), rubric) == pytest.approx(0.5 / 1.5)
    assert coverage(words_of("glucose glucose"), rubric) == pytest.approx(1 / 1.5)
    assert coverage(words_of("of"), rubric) == 0.0
    assert coverage([], []) == 0.0


def test_an_answer_in_its_own_words_earns_the_sum_of_both_parts():
    rubric = '[{"description": "mentions glucose", "weight": 5}]'
    # taken: glucose; own: cells, burn, fuel, as. Coverage: 1 of 2 keywords. Likeness: the blocks
    # `cells burn glucose` and `fuel`, 4 words, of 4 + 5: 2 * 4 / 9
    said, reference = "Cells burn glucose as fuel", "cells burn glucose fuel"
    assert score(said, rubric) == pytest.approx(10 * 0.5)
    assert score(said, rubric, reference=reference) == pytest.approx(10 * 0.5 + 5 * 8 / 9)


def test_an_answer_is_worth_less_the_less_of_it_is_its_own():
    rubric = words_of("alpha beta gamma delta")
    assert own_share(words_of("alpha beta and so"), [rubric]) == 1.0  # 2 own, 2 taken
    assert own_share(words_of("alpha beta gamma yes"), [rubric]) == pytest.approx(1 / 3)
    assert own_share(words_of("delta alpha"), [rubric]) == 0.0
    assert own_share([], [rubric]) == own_share(["own"], [rubric]) == 1.0


def test_words_of_a_copied_passage_do_not_count():
    rubric = words_of("names the source of energy")
    assert uncopied(words_of("It names the source, I say"), [rubric]) == ["it", "i", "say"]
    assert uncopied(words_of("the source"), [rubric]) == ["the", "source"]  # two words are chance


def test_what_an_answer_must_not_have_is_no_keyword():
    said = "Well my plants love sunlight so very much"
    assert score(said, dump_rubric(ITEMS)) == 0.0
    assert score(said, dump_rubric(ITEMS[:2])) == 0.0
    assert score("Well my glucose is so very low", dump_rubric(ITEMS)) > 0


def test_without_a_rubric_a_completion_is_masked():
    assert earned("rubric-overlap", answered("anything", rubric=None)) == [None]


@pytest.mark.parametrize("rubric", RUBRICS)
def test_the_rubric_itself_earns_nothing(rubric):
    shown = "\n".join(item.description for item in ITEMS) if rubric.startswith("[") else rubric
    for said in (rubric, shown, shown.upper(), f"> {shown}", shown + shown):
        assert score(said, rubric, reference="Mitochondria make energy of glucose.") == 0.0


@settings(deadline=None)
@given(st.data())
def test_no_choice_of_the_rubrics_words_in_any_order_earns_anything(data):
    rubric = data.draw(st.sampled_from(RUBRICS))
    taken = data.draw(st.lists(st.sampled_from(words_of(rubric)), min_size=1))
    assert score(" ".join(taken), rubric, reference="glucose becomes energy") == 0.0


OWN = "Inside each cell small power plants, the mitochondria, turn sugar into usable power"


@settings(deadline=None)
@given(st.data())
def test_pasting_a_passage_behind_an_answer_never_raises_it(data):
    rubric = data.draw(st.sampled_from(RUBRICS))
    words = words_of(rubric)
    begin = data.draw(st.integers(0, len(words) - 3))
    end = data.draw(st.integers(begin + 3, len(words)))
    own = data.draw(st.lists(st.sampled_from([*words_of(OWN), *words]), max_size=12))
    assume(own)
    pasted = " ".join([*own, *words[begin:end]])
    assert score(pasted, rubric) <= score(" ".join(own), rubric)


def test_a_broken_rubric_is_named_with_its_row():
    with pytest.raises(TrainingError, match="rubric_overlap failed on row 5: DataError: the r"):
        score("anything", json.dumps([{"weight": 1}]))
