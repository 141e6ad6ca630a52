"""The Python that the README and docs/notebook.md show is run as it stands there, for one step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/notebook.md"])
def test_the_python_of_a_page_trains(page, repository, tmp_path, monkeypatch, cache_dir, tiny):
    # A checkout, as far as the lines can see, and a home whose cache holds the tiny model.
    Path("data").symlink_to(repository / "data", target_is_directory=True)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/gptoss").symlink_to(cache_dir, target_is_directory=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    blocks = python_blocks((repository / page).read_text(encoding="utf-8"))
    assert blocks
    for number, block in enumerate(blocks, 1):
        shorter, replaced = re.subn(r"max_steps=\d+", "max_steps=1", block)
        assert replaced == 1
        exec(compile(shorter, page, "exec"), {})
        run = tmp_path / f"runs/grpo-{number:03d}"
        assert (run / "adapter/adapter_model.safetensors").is_file()
