"""Named parts that users choose by name: rewards, Q methods, adapter kinds and the like.

A part is registered where it is defined (`@register("reward", "decision")`) and fetched by its name
or as `package.module:attribute`. This module imports none of the parts: whoever calls `get` imports
the module that registers the built-in ones first.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from gptoss_tools.errors import ConfigError

Part = TypeVar("Part")

_PARTS: dict[str, dict[str, Any]] = {}


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Put the decorated object under `kind` and `name`; a name taken by another object is a bug."""

    def keep(part: Part) -> Part:
        parts = _PARTS.setdefault(kind, {})
        taken = parts.get(name)
        if taken is not None and _identity(taken) != _identity(part):
            raise ValueError(f"{kind} {name!r} is already registered as {_identity(taken)}")
        parts[name] = part
        return part

    return keep


def names(kind: str) -> list[str]:
    """All registered names of one kind, sorted."""
    return sorted(_PARTS.get(kind, {}))


def parts(kind: str) -> dict[str, Any]:
    """All registered parts of one kind by name, in the order they were registered."""
    return dict(_PARTS.get(kind, {}))


def get(kind: str, name: str) -> Any:
    """The part registered as `name`, or the object at `package.module:attribute`.

    Modules in the current folder are found too. Raises ConfigError with the nearest known name.
    """
    if ":" in name:
        return _load(kind, name)
    parts = _PARTS.get(kind, {})
    if name in parts:
        return parts[name]
    near = difflib.get_close_matches(name, parts, n=1)
    known = ", ".join(names(kind)) or "none"
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"unknown {kind} {name!r}",
        hint=f"{hint}known: {known}; or give your own as package.module:attribute",
    )


def _load(kind: str, address: str) -> Any:
    module_name, _, attribute = address.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{kind} {address!r} is not of the form package.module:attribute")
    # A console script does not search the current folder, where users keep their own modules.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end at once
        raise ConfigError(
            f"{kind} {address!r}: cannot import {module_name} ({type(error).__name__}: {error})",
            hint="check the spelling, and that the module imports on its own",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [n for n in vars(found) if n[0] != "_"], n=1)
            raise ConfigError(
                f"{kind} {address!r}: {module_name} has no {attribute!r}",
                hint=f"did you mean {near[0]}?" if near else None,
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{kind} {address!r} is a {type(found).__name__}, which cannot be called")
    return found


def _identity(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}:{getattr(part, '__qualname__', repr(part))}"
