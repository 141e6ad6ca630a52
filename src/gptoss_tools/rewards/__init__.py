"""What answers earn: by a table of values, or by what they say."""

from gptoss_tools.rewards.answered import Answered, RewardKind, batch_reward, reward

__all__ = ["Answered", "RewardKind", "batch_reward", "reward"]
