"""What a completion earns, and the judge that some rewards ask."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gptoss_tools.errors import ConfigError
from gptoss_tools.settings.groups import AtLeastZero, Positive, Settings

Pair = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=2)]


def by_commas(value: Any) -> Any:
    """Let one text stand for several, separated by commas: `--reward format,exact`."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list):
        return value
    split = (one.split(",") if isinstance(one, str) else [one] for one in given)
    parts = (part.strip() if isinstance(part, str) else part for parts in split for part in parts)
    return [part for part in parts if part != ""]


def pair_by_comma(value: Any) -> Any:
    """Let one text with one comma stand for two: `--answer-tags '<a>,</a>'`."""
    given = value[0] if isinstance(value, list) and len(value) == 1 else value
    return given.split(",") if isinstance(given, str) and given.count(",") == 1 else value


class TagSettings(Settings):
    """The structure that prompts ask for and the reward `format` looks for."""

    reasoning_tags: Pair = Field(
        ["<reasoning>", "</reasoning>"], description="What opens and closes the reasoning."
    )
    answer_tags: Pair = Field(
        ["<answer>", "</answer>"], description="What opens and closes the answer."
    )

    _split_tags = field_validator("reasoning_tags", "answer_tags", mode="before")(pair_by_comma)


class JudgeSettings(Settings):
    """The model that grades answers by a rubric: any endpoint that speaks OpenAI's chat API."""

    judge_model: str | None = Field(None, description="Name of the judge at its endpoint.")
    judge_url: str | None = Field(
        None, description="Base address of the judge, http://localhost:8000/v1 (default: OpenAI's)."
    )
    judge_timeout: Annotated[float, Field(gt=0)] = Field(
        60.0, description="Seconds until one request to the judge has failed."
    )
    judge_retries: Annotated[int, Field(ge=0)] = Field(
        4, description="Tries after the first where the judge is busy, broken or unreadable."
    )
    judge_concurrency: Positive = Field(16, description="Requests to the judge at one time.")
    judge_cache: str | None = Field(
        None, description="Folder of judgements already paid for (default: none is kept)."
    )
    judge_max_tokens: Positive = Field(512, description="Longest answer of the judge, in tokens.")
    judge_prices: Annotated[list[AtLeastZero], Field(min_length=2, max_length=2)] = Field(
        [0.0, 0.0], description="Price per million tokens, read and written, for the cost counter."
    )

    _split_prices = field_validator("judge_prices", mode="before")(by_commas)


class RewardSettings(TagSettings, JudgeSettings):
    """Which rewards are added up, and what they go by."""

    reward: Annotated[list[str], Field(min_length=1)] = Field(
        ["decision"],
        description="Rewards by name (gptoss rewards lists them) or pkg.mod:function; several "
        "are added up.",
    )
    reward_weights: list[float] = Field([], description="A factor for each reward (default: 1).")
    invalid_reward: float | Literal["mask", "worst"] = Field(
        "worst",
        description="Reward of an answer that is no action: `mask` leaves it out of group and "
        "loss, `worst` counts it as the row's worst action (at most 0), a number is that number.",
    )
    format_rewards: Annotated[list[float], Field(min_length=3, max_length=3)] = Field(
        [2.0, 0.5, -1.0], description="Reward `format`: exact structure, a part of it, none."
    )
    answer_pattern: str | None = Field(
        None,
        description="Reward `regex`: what the answer must match; a group must equal the row's "
        "`answer`, where it has one.",
    )
    numeric_tolerance: AtLeastZero = Field(
        1e-6, description="Reward `numeric`: largest difference, relative or absolute."
    )
    rubric_mode: Literal["explicit", "implicit"] = Field(
        "explicit",
        description="Reward `rubric`: the judge decides item by item, or rates 1 to 10 at once.",
    )
    rubric_weights: Annotated[list[AtLeastZero], Field(min_length=4, max_length=4)] = Field(
        [1.0, 0.7, 0.3, 0.9],
        description="Weights of Essential, Important, Optional and Pitfall items.",
    )

    # Runs made before there could be several rewards hold a single name.
    _split = field_validator(
        "reward", "reward_weights", "format_rewards", "rubric_weights", mode="before"
    )(by_commas)

    @model_validator(mode="after")
    def _a_weight_each(self) -> RewardSettings:
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            raise ConfigError(
                f"reward_weights has {len(self.reward_weights)} numbers for "
                f"{len(self.reward)} rewards",
                "one for each reward, in their order",
            )
        if len(set(self.reward)) < len(self.reward):
            raise ConfigError(
                "reward names one reward twice", "once each: reward_weights says how much it counts"
            )
        tags = {tag.strip() for tag in (*self.reasoning_tags, *self.answer_tags)} - {""}
        if "format" in self.reward and len(tags) < 4:
            raise ConfigError(
                "the reward format needs reasoning_tags and answer_tags to be four different tags",
                "--answer-tags '<answer>,</answer>', say",
            )
        return self


class RewardsSettings(RewardSettings):
    """rewards."""

    names: list[str] = Field(
        [], description="Which ones, your own as pkg.mod:function too (default: all built-in ones)."
    )
