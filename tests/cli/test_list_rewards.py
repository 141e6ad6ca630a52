"""gptoss rewards: every reward with its columns and the values its settings have here."""

from __future__ import annotations

import json
from pathlib import Path

from gptoss_tools.rewards.combined import all_kinds


def test_every_reward_is_listed_with_what_it_reads(gptoss):
    code, out, _ = gptoss("rewards", "--json")
    assert code == 0
    found = {one["name"]: one for one in json.loads(out)["rewards"]}
    assert set(found) == {kind.name for kind in all_kinds()}
    assert found["decision"]["action_values"] and not found["exact"]["action_values"]
    assert found["exact"]["columns"] == ["answer"]
    assert found["rubric"]["settings"]["judge_model"] is None


def test_settings_are_those_in_force_here_and_own_rewards_can_be_asked_about(gptoss):
    Path("gptoss.toml").write_text("numeric_tolerance = 0.25\n")
    Path("kind_words.py").write_text(
        "def thanks(prompts, completions, tone):\n"
        '    """1 for thanks."""\n'
        "    return [float('thank' in c) for c in completions]\n"
    )
    code, out, _ = gptoss("rewards", "numeric", "kind_words:thanks")
    assert code == 0
    first, second = out.strip().split("\n\n")
    assert "numeric_tolerance = 0.25" in first and "columns: answer" in first
    assert second == "thanks: 1 for thanks.\n  columns: tone"


def test_a_misspelt_reward_names_the_nearest_one(gptoss):
    code, _, err = gptoss("rewards", "exakt")
    assert code == 2 and "did you mean exact?" in err
