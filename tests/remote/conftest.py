"""One training through the whole of --modal, against a stand-in of Modal's server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import remote_lab
from modal_stand_in import Server, StandIn


@dataclass
class Launched:
    """A training that ran through --modal without a break."""

    here: Path
    volume: Path
    stand_in: StandIn
    done: CompletedProcess


@pytest.fixture
def modal_server(tmp_path) -> Iterator[Server]:
    """A stand-in whose volume is `tmp_path/volume`."""
    with Server(StandIn(tmp_path / "volume")) as server:
        yield server


@pytest.fixture(scope="session")
def launched(tmp_path_factory, cache_dir, tiny) -> Iterator[Launched]:
    here, volume = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("volume")
    remote_lab.write_table(here / "tables" / "train.csv")
    with Server(StandIn(volume, secrets=("wandb-secret",))) as server:
        done = remote_lab.gptoss(
            *("train-grpo", "--modal", "--gpu", "H200:1", "--data", "tables"),
            *(*remote_lab.SHORT, "--output-dir", "runs/straight"),
            cwd=here,
            GPTOSS_CACHE=str(cache_dir),
            GPTOSS_LEARNING_RATE="1e-3",
            **server.environment,
        )
        yield Launched(here, volume, server.stand_in, done)
