"""The benchmarks are scripts, not a package: tests import them by name from their folder."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.fixture(scope="session")
def script(pytestconfig):
    """Import a script of benchmarks/ as a module."""
    folder = str(pytestconfig.rootpath / "benchmarks")

    def load(name: str):
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)

    return load


@pytest.fixture(scope="session")
def make_checkpoint(script):
    return script("make_checkpoint")


@pytest.fixture(scope="session")
def synthetic(make_checkpoint, tmp_path_factory):
    """The tiny synthetic checkpoint and its adapter: (base folder, adapter folder)."""
    home = tmp_path_factory.mktemp("synthetic")
    base = make_checkpoint.write_checkpoint(home / "base", "tiny")
    return base, make_checkpoint.write_adapter(home / "adapter", base)
