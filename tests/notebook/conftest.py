"""A folder with a random model and a table, as the tests of whole runs have it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import run_lab


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Path:
    """Model, table and `straight`, a run of six steps that the library trained by itself."""
    folder = run_lab.furnish(tmp_path_factory.mktemp("lab"))
    run_lab.run(folder, "straight")
    return folder


@pytest.fixture
def config(lab):
    """Make the settings of a quiet session on the lab's model and table."""
    from gptoss_tools.notebook import SessionSettings

    def make(**changes) -> SessionSettings:
        own = {"model": str(lab / "model"), "data": [str(lab / "table.csv")], "quiet": True}
        return SessionSettings(**{**run_lab.SMALL, **own, **changes})

    return make
