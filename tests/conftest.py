"""Every test runs in an empty folder, without this machine's settings or credentials."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
OURS = ("GPTOSS_", "GRPO_", "HF_REPO_ID", "HF_TOKEN", "WANDB_", "MODAL_")

# Workers share the cores, and sums come in one order whatever the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line sets it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells leave it to what they run behind
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(config, items):
    """Workers begin with the slow files, those at the top first: none is left for the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (item.path not in slow, len(item.path.parts)))


@pytest.fixture(scope="session")
def cache_dir(request, tmp_path_factory) -> Path:
    """One cache folder for the session and all its workers: the tiny model is built once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path, cache_dir):
    """Empty working folder, none of our variables, our own cache."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GPTOSS_CACHE", str(cache_dir))
    monkeypatch.chdir(tmp_path)
    ended = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, ended)  # the command line sets its own
    if "wandb" in sys.modules:  # it keeps what it read of the environment, and a process
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real inputs that live beside the checkout; tests that need them are skipped without."""
    if not SHARED.is_dir():
        pytest.skip(f"real inputs are not at {SHARED}")
    return SHARED


@pytest.fixture
def gptoss(capsys):
    """Run a command line in this process; return (exit code, stdout, stderr)."""
    from gptoss_tools.cli.app import main

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        ended = signal.getsignal(signal.SIGTERM)
        code = main([str(a) for a in arguments])
        signal.signal(signal.SIGTERM, ended)  # or lm-eval's pool would inherit the command's
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def tiny(cache_dir) -> Path:
    """The folder of the tiny model, built once per session."""
    from gptoss_tools.models.tiny_cache import tiny_path

    return tiny_path(cache_dir)
