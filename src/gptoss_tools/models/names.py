"""What a model's name means, and which base an adapter names: light, unlike loading either."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gptoss_tools.errors import ConfigError

TINY = "tiny"


def resolve_model(name: str | Path, *, cache_dir: Path | None = None) -> str:
    """`tiny` to its folder (built if need be), a folder to itself, anything else as a Hub id.

    Raises ConfigError for what is neither an existing folder nor shaped like a Hub id.
    """
    name = str(name)
    if name == TINY:
        from gptoss_tools.models.tiny_cache import tiny_path  # loads transformers

        return str(tiny_path(cache_dir))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ConfigError(f"model folder {name} holds no config.json")
        return name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ConfigError(
            f"model {name!r} is neither a folder nor a Hub id",
            hint="use `tiny`, a folder with a config.json, or owner/name",
        )
    return name


def is_gpt_oss(folder: str | Path) -> bool:
    """Whether the config.json of a model folder is that of a gpt-oss; False without one."""
    return _model_type(folder) == "gpt_oss"


def is_other_family(folder: str | Path) -> bool:
    """Whether the config.json of a model folder is that of another model; False without one."""
    return _model_type(folder) not in (None, "gpt_oss")


def _model_type(folder: str | Path) -> Any:
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def base_of(adapter: str | Path) -> str:
    """The base model named in an adapter's adapter_config.json."""
    path = Path(adapter) / "adapter_config.json"
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except FileNotFoundError:
        raise ConfigError(f"{adapter} is no adapter folder: {path.name} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} does not name its base model") from None
    if not base:
        raise ConfigError(f"{path} does not name its base model", hint="name the base model")
    return str(base)
