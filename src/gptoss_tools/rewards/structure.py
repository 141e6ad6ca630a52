"""format: whether the final message has the structure that the prompt asked for."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_tools.rewards.answered import Answered, reward
from gptoss_tools.settings import RewardSettings

Span = tuple[int, int]


@reward("format", reads=("format_rewards", "reasoning_tags", "answer_tags"))
def structure(answered: Answered, settings: RewardSettings) -> float:
    """Reasoning, then an answer, each inside its tags and nothing else; a part of it pays less.

    Exact: the whole message is the reasoning's pair, then the answer's, with text inside both and
    nothing but white space around them, each tag exactly once. A part: one of the two pairs is
    there, once, with text inside. Tags without text, or left open, are no part.
    """
    exact, partial, none = settings.format_rewards
    text = answered.text.strip()
    every = [*settings.reasoning_tags, *settings.answer_tags]
    reasoning = pair(text, settings.reasoning_tags, every)
    answer = pair(text, settings.answer_tags, every)
    if reasoning and answer:
        between = text[reasoning[1] : answer[0]]
        if reasoning[0] == 0 and answer[1] == len(text) and not between.strip():
            return exact
    return partial if reasoning or answer else none


def pair(text: str, tags: Sequence[str], every: Sequence[str]) -> Span | None:
    """Where a pair of tags stands that is there exactly once, in order, with text inside.

    Tags, `every` one of them, are no text.
    """
    opening, closing = tags
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    begin, end = text.index(opening), text.index(closing)
    inside = text[begin + len(opening) : end]
    for tag in every:
        inside = inside.replace(tag, "")
    return (begin, end + len(closing)) if inside.strip() else None
