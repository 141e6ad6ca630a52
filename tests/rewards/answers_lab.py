"""Answers without a model."""

from __future__ import annotations

from typing import Any

from gptoss_tools.chat.actions import Decision, parse_action
from gptoss_tools.chat.completions import split_text
from gptoss_tools.rewards import Answered
from gptoss_tools.rewards.combined import find
from gptoss_tools.settings import RewardSettings


def answered(said: str | None, *, cut: bool = False, **row: Any) -> Answered:
    """A final message, or none; `cut` where the length limit came first."""
    final = "" if said is None else f"<|start|>assistant<|channel|>final<|message|>{said}"
    stop = "" if cut else "<|return|>"
    text = f"<|channel|>analysis<|message|>I think [7] 7 <answer>7</answer><|end|>{final}{stop}"
    completion = split_text(text)
    decision: Decision = parse_action(completion, 0)
    return Answered("P", completion, {"row": 4, **row}, decision)


def earned(name: str, *answers: Answered, **settings: Any) -> list[float | None]:
    """What one reward gives for the answers."""
    return find(name).build(RewardSettings(**settings))(list(answers))
