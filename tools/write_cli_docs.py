"""Write docs/cli.md from every command's own help: `python tools/write_cli_docs.py docs/cli.md`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from pathlib import Path

from gptoss_tools.cli.app import COMMANDS, main

HEADER = "# Command line\n\nMade by `make docs` from `gptoss COMMAND -h`; a test keeps it fresh.\n"


def render() -> str:
    """Return the page: the root help, then one section per command."""
    os.environ["COLUMNS"] = "100"
    os.environ["TERMINAL_WIDTH"] = "100"
    parts = [HEADER, f"```text\n{_help([])}\n```\n"]
    for name in COMMANDS:
        parts.append(f"## gptoss {name}\n\n```text\n{_help([name])}\n```\n")
    return "\n".join(parts)


def _help(arguments: list[str]) -> str:
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        code = main([*arguments, "-h"])
    assert code == 0, f"gptoss {' '.join(arguments)} -h exits {code}"
    return "\n".join(line.rstrip() for line in captured.getvalue().strip().splitlines())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.parse_args().page.write_text(render(), encoding="utf-8")
