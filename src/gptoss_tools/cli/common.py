"""What several commands need from the environment: the cache folder, the Hub token."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return where the tiny model is kept: GPTOSS_CACHE, else the user's cache folder."""
    if own := os.environ.get("GPTOSS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptoss"


def hub_token() -> str | None:
    """Return the Hub token of HF_TOKEN or of `hf auth login`, or None."""
    from huggingface_hub import get_token

    return get_token()
