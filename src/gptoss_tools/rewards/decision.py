"""decision: what the table says the chosen action is worth."""

from __future__ import annotations

from gptoss_tools.data.action_rewards import settle
from gptoss_tools.rewards.answered import Answered, reward
from gptoss_tools.settings import RewardSettings


@reward("decision", reads=("invalid_reward",), values=True)
def decision(answered: Answered, settings: RewardSettings) -> float | None:
    """The table's reward of the chosen action; `invalid_reward` where none was chosen."""
    action = answered.decision.action
    score = None if action is None else float(answered.rewards_K[action])
    return settle(score, answered.decision, settings.invalid_reward, answered.rewards_K)
