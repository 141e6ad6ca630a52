"""Two processes take the exact steps of one with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import exact_ranks
import pytest


@pytest.mark.slow
def test_two_processes_take_the_exact_steps_of_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", exact_ranks.__file__, str(tmp_path), "2"]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    alone = exact_ranks.train(Path(tmp_path / "alone"), 1)
    assert len(alone["expected"]) == 16 and second["expected"] == []
    for (*place, expected), (*other, given) in zip(
        alone["expected"], first["expected"], strict=True
    ):
        assert place == other and expected == pytest.approx(given, rel=1e-4, abs=1e-6)
    assert first["logged"] == pytest.approx(alone["logged"], rel=1e-4)
    assert first["odd"] == second["odd"] == pytest.approx(alone["odd"], rel=1e-4)
    assert first["weights"] == second["weights"]
    for name, value in alone["weights"].items():
        assert first["weights"][name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
