"""The Python that README.md shows is run as it stands there, with fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_the_readmes_python_trains(repository, tmp_path, monkeypatch, cache_dir, tiny, capsys):
    [block] = python_blocks((repository / "README.md").read_text(encoding="utf-8"))
    shorter, replaced = re.subn(r"max_steps=\d+", "max_steps=1", block)
    assert replaced == 1
    # A checkout, as far as the lines can see, and a home whose cache holds the tiny model.
    Path("data").symlink_to(repository / "data", target_is_directory=True)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/gptoss").symlink_to(cache_dir, target_is_directory=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    exec(compile(shorter, "README.md", "exec"), {})
    assert (tmp_path / "runs/grpo-001/adapter/adapter_model.safetensors").is_file()
    assert (tmp_path / "exports/grpo-001-adapter/adapter_model.safetensors").is_file()
    assert "[final]" in capsys.readouterr().out
