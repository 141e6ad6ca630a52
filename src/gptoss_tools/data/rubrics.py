"""Rubrics: what a table's cell says a good answer has, read into items with an explicit polarity.

Formats, and why a pitfall's polarity may have to be told: docs/rubrics.md. Leaves out who decides
the items and what they add up to (rewards.rubric).
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gptoss_tools.errors import DataError

Category = Literal["Essential", "Important", "Optional", "Pitfall"]
Pitfalls = Literal["positive", "negative", "error"]

CATEGORIES: tuple[Category, ...] = ("Essential", "Important", "Optional", "Pitfall")
# OpenRubrics tags what the prompt demands and what is good in general: the nearest two of the four.
_MEANS: dict[str, Category] = {
    "hard rule": "Essential",
    "mandatory": "Essential",
    "principle": "Important",
    **{category.lower(): category for category in CATEGORIES},
}

_PREFIX = re.compile(r"\**([A-Za-z]+)(?:\s+Criteri(?:a|on))?\**\s*:\**\s*", re.IGNORECASE)
_TAG = re.compile(r"\s*\**\[([A-Za-z ]+)\]\**\s*")
_NUMBER = re.compile(r"\s{0,3}\**\d{1,3}[.)]\**\s+(?=\S)")
_BULLET = re.compile(r"\s*[-*•]\s+")

_SUBJECT = r"(?:(?:the|this) (?:response|answer|model|assistant|text) |it |response |answer )?"
_WORDS = {
    # Satisfied by the absence of a fault.
    "avoids": r"avoid|refrain|abstain|steers? clear|never |do not |don't |(?:should|must|may|can)"
    r"(?: not|n't)|cannot ",
    # Satisfied by the absence of something good.
    "omits": r"fail|omit|neglect|overlook|ignor|lack|miss(?:es|ing)? |forget",
    # "Does not mention X" is either, depending on X.
    "denies": r"does(?: not|n't) |is not |isn't |not |no |without ",
}
_STARTS = {
    kind: re.compile(_SUBJECT + f"(?:{words})", re.IGNORECASE) for kind, words in _WORDS.items()
}


@dataclass(frozen=True)
class RubricItem:
    """One thing to look for in an answer; `positive` says that finding it is good.

    `weight` is the number that was read, sign and all; `category` is None where a rubric names
    none at all.
    """

    description: str
    category: Category | None = None
    weight: float | None = None
    positive: bool = True
    title: str | None = None


def parse_rubric(cell: Any, where: str, *, pitfalls: Pitfalls = "error") -> list[RubricItem]:
    """Read a rubric from a list, its JSON text, or lines of text (RaR, OpenRubrics, our own).

    `pitfalls` says whether satisfying a pitfall is good (`positive`) or bad where neither its words
    nor its weight tell: published rubrics hold both kinds under the same sign, and a wrong guess
    trains the fault. Raises DataError, starting with `where`, on such a pitfall by default, and on
    everything that is no rubric.
    """
    if isinstance(cell, str):
        cell = _from_text(cell, where)
    elif hasattr(cell, "tolist"):  # pandas reads Parquet's lists as arrays
        cell = cell.tolist()
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}: the rubric has no items", hint="see docs/rubrics.md for formats")
    return _with_categories(
        [_item(read, f"{where}: rubric item {n}", pitfalls) for n, read in enumerate(cell, 1)]
    )


def dump_rubric(items: list[RubricItem]) -> str:
    """The items as JSON text that `parse_rubric` reads back as they are."""
    return json.dumps([vars(item) for item in items], ensure_ascii=False)


def _from_text(text: str, where: str) -> list[Any]:
    """The list a JSON text holds, or the text's lines: by number where they are numbered."""
    if re.match(r'\s*\[\s*[{"\]]', text):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: the rubric is broken JSON ({error})") from error
    lines = [line for line in text.splitlines() if line.strip()]
    numbered = [n for n, line in enumerate(lines) if _NUMBER.match(line)]
    if not numbered:
        return [_BULLET.sub("", line, count=1).strip() for line in lines]
    # What stands before the first number introduces; a line without one goes on with the last.
    ends = [*numbered[1:], len(lines)]
    parts = [[line.strip() for line in lines[a:b]] for a, b in zip(numbered, ends, strict=True)]
    return [_NUMBER.sub("", " ".join(part), count=1) for part in parts]


def _item(read: Any, where: str, pitfalls: Pitfalls) -> RubricItem:
    if isinstance(read, str):
        read = {"description": read}
    if not isinstance(read, Mapping):
        raise DataError(f"{where} is a {type(read).__name__}, not text or an object")
    text = read.get("description", read.get("criterion"))
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where} has no description")
    weight = _weight(read.get("weight", read.get("points")), where)
    title = read.get("title")
    if isinstance(read.get("positive"), bool):
        category = read.get("category")
        if category is not None and category not in CATEGORIES:
            raise DataError(f"{where} has the category {category!r}", hint=_one_of_categories())
        return RubricItem(text, category, weight, read["positive"], title)
    text, category = _split_category(text)
    if isinstance(title, str):
        title, of_title = _split_category(title)
        category = category or of_title
    if read.get("category") is not None:
        category = _category(str(read["category"]))
        if category is None:
            raise DataError(
                f"{where} has the category {read['category']!r}", hint=_one_of_categories()
            )
    if not text:
        raise DataError(f"{where} has no description")
    positive = True
    if category == "Pitfall" or (weight or 0) < 0:
        positive = _polarity(text, weight, where, pitfalls)
    return RubricItem(text, category, weight, positive, title)


def _polarity(text: str, weight: float | None, where: str, pitfalls: Pitfalls) -> bool:
    """Whether satisfying a pitfall's text is good, from how it starts and its weight's sign."""
    sign = 0 if not weight else math.copysign(1, weight)
    if _STARTS["avoids"].match(text):
        return True
    if _STARTS["omits"].match(text):
        if sign <= 0:
            return False
    elif sign > 0:
        return True
    elif sign < 0 and not _STARTS["denies"].match(text):
        return False
    if pitfalls == "error":
        raise DataError(
            f"{where} is a pitfall, and whether satisfying it is good cannot be told: "
            f"{text[:80]!r}",
            hint="say whether satisfied pitfalls are good or bad: `positive` (most of RaR-Science) "
            'or `negative` (most of RaR-Medicine); or give items "positive": true or false',
        )
    return pitfalls == "positive"


def _with_categories(items: list[RubricItem]) -> list[RubricItem]:
    """Where some items name a category, give the others one: weights of both kinds do not mix.

    The ranges are those that RaR's prompt for medicine asks its authors to keep to.
    """
    if all(item.category is None for item in items):
        return items

    def by_weight(item: RubricItem) -> Category:
        if not item.positive or (item.weight or 0) < 0:
            return "Pitfall"
        if item.weight is None:
            return "Important"
        return "Essential" if item.weight >= 5 else "Important" if item.weight >= 3 else "Optional"

    return [item if item.category else replace(item, category=by_weight(item)) for item in items]


def _split_category(text: str) -> tuple[str, Category | None]:
    """Take off the category: `Pitfall Criteria: ...`, `[Hard Rule] ...`, `... [Principle]`."""
    text = text.strip()
    for match in (_PREFIX.match(text), _TAG.match(text), re.search(_TAG.pattern + r"\.?$", text)):
        found = match and _category(match[1])
        if match and found:
            return (text[: match.start()] + text[match.end() :]).strip(), found
    return text, None


@functools.lru_cache(maxsize=1024)  # a data set spells them in a few ways, a million times
def _category(name: str) -> Category | None:
    """The category a name stands for; models misspell it (`Esssential`, `Importance`, `Option`)."""
    near = difflib.get_close_matches(name.strip().lower(), _MEANS, n=1, cutoff=0.75)
    return _MEANS[near[0]] if near else None


def _weight(read: Any, where: str) -> float | None:
    if read is None or (isinstance(read, float) and math.isnan(read)):
        return None
    try:
        weight = math.nan if isinstance(read, bool) else float(read)
    except (TypeError, ValueError):
        weight = math.nan
    if not math.isfinite(weight):
        raise DataError(f"{where} has the weight {read!r}, which is no number")
    return weight


def _one_of_categories() -> str:
    return f"one of {', '.join(CATEGORIES)}"
