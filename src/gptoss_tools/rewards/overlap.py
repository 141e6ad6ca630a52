"""rubric-overlap: how many of the rubric's words an answer uses, and how near it is to a reference.

A cheap stand-in for a judge, and gameable like every count of words: filler between keywords pays.
What does not pay is the rubric itself, which prompts often show. Words in a passage copied from it
do not count, and an answer is worth the less, the less of it is its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from gptoss_tools.data.rubrics import RubricItem, parse_rubric
from gptoss_tools.rewards.answered import Answered, reward
from gptoss_tools.settings import RewardSettings

COVERAGE, SIMILARITY = 10.0, 5.0  # what each part earns at most
PASSAGE = 3  # as many words in the rubric's order are a copy of it
LETTERS = 3  # shorter words are no keywords

_WORD = re.compile(r"[^\W_]+")


@reward("rubric-overlap", columns=("rubric",))
def rubric_overlap(answered: Answered, settings: RewardSettings) -> float | None:
    """Share of the rubric's words in the answer, times 10, and likeness to `reference`, times 5.

    Both times the share of own words; pasting the rubric, whole or in pieces, earns 0.
    """
    cell = answered.row.get("rubric")
    if cell is None:
        return None
    items = parse_rubric(cell, "the rubric", pitfalls="negative")
    wanted = words_of("\n".join(item.description for item in items if item.positive))
    # All that a prompt may show of it, in both of the forms it has.
    shown = [words_of(f"{cell}"), words_of("\n".join(_all_of(item) for item in items))]
    words = words_of(answered.text)
    kept = uncopied(words, shown)
    likeness = similarity(kept, words_of(str(answered.row.get("reference") or "")))
    return own_share(words, shown) * (COVERAGE * coverage(kept, wanted) + SIMILARITY * likeness)


def words_of(text: str) -> list[str]:
    """The words of a text, in order, without upper case."""
    return [word.casefold() for word in _WORD.findall(text)]


def coverage(words: list[str], rubric: list[str]) -> float:
    """Share of the rubric's distinct keywords in `words`; rarer ones in the rubric weigh more.

    A keyword that stands n times in the rubric weighs 1 / n.
    """
    weights = {word: 1 / n for word, n in Counter(filter(_is_key, rubric)).items()}
    total = sum(weights.values())
    said = set(words)
    return sum(w for word, w in weights.items() if word in said) / total if total else 0.0


def similarity(words: list[str], reference: list[str]) -> float:
    """How alike two texts are as sequences of words, 0 to 1 (difflib's ratio)."""
    if not words or not reference:
        return 0.0
    return SequenceMatcher(None, reference, words, autojunk=False).ratio()


def uncopied(words: list[str], texts: Sequence[list[str]]) -> list[str]:
    """The words that stand in no run of three or more that a text has in the same order."""
    runs = {tuple(text[i : i + PASSAGE]) for text in texts for i in range(len(text) - PASSAGE + 1)}
    copied = [False] * len(words)
    for i in range(len(words) - PASSAGE + 1):
        if tuple(words[i : i + PASSAGE]) in runs:
            copied[i : i + PASSAGE] = [True] * PASSAGE
    return [word for word, is_copied in zip(words, copied, strict=True) if not is_copied]


def own_share(words: list[str], texts: Sequence[list[str]]) -> float:
    """1 where at least as many of the distinct words are in none of the texts as in one, else less.

    The ratio of the two: 0 for nothing but words of the texts, in whatever order they come.
    """
    taken = set(words) & set().union(*texts)
    return min(1.0, (len(set(words)) - len(taken)) / len(taken)) if taken else 1.0


def _all_of(item: RubricItem) -> str:
    return f"{item.category or ''} {item.title or ''} {item.description}"


def _is_key(word: str) -> bool:
    return len(word) >= LETTERS
