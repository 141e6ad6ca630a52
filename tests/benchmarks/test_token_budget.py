"""The benchmark of --tokens-per-forward compares like with like."""

from __future__ import annotations

import json

import pytest


def test_a_budget_makes_more_forwards_of_the_same_gradient(capsys, script):
    shape = {"prompts": 2, "prompt": 40, "completion": 10, "group": 3}
    found = []
    for budget in (None, 60):
        script("token_budget").worker(budget, **shape)
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    whole, cut = found
    assert (whole["forwards"], whole["tokens"]) == (1, whole["largest"])
    assert cut["forwards"] > 2 and cut["largest"] <= 60  # a group has 39 and 3 times 5 to 10
    assert cut["gradient"] == pytest.approx(whole["gradient"], rel=1e-4)
