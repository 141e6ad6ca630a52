"""A recipe that builds a tiny model in a blink: right in structure, without any skill."""

from gptoss_tools.models.tiny import Recipe

HURRIED = Recipe(steps=6, answer_steps=3, batch_size=4, far_every=3, far_tokens=210)
