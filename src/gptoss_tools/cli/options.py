"""From a settings class to a command: one flag per field, checked in one place.

`@command("name", SettingsClass, ...)` turns `fn(settings, loaded)` into a Command. Typer only
splits the line; pydantic checks every value, so a wrong flag, variable or TOML value reads the
same. Work starts after parsing, in `app.main`, outside Typer's own exception handling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..load import Loaded, flag_of
from ..settings import Settings


@dataclass(frozen=True)
class Command:
    """A command as its file declares it."""

    name: str
    settings: type[Settings]
    run: Callable[[Any, Loaded], None]
    examples: Sequence[str]
    positional: str | None = None


@dataclass
class Request:
    """What the parsed line asks for; `app.main` carries it out."""

    command: Command
    flags: dict[str, Any]
    config: str | None
    mode: str
    verbose: bool
    line: str = ""


def command(
    name: str,
    settings: type[Settings],
    *,
    examples: Sequence[str],
    positional: str | None = None,
):
    """Declare a command: its settings, its examples, and which field stands without a flag."""

    def declare(run: Callable[[Any, Loaded], None]) -> Command:
        return Command(name, settings, run, examples, positional)

    return declare


def typer_function(spec: Command, submit: Callable[[Request], None]) -> Callable[..., None]:
    """Return a function with one Typer parameter per field, which submits a Request."""

    def parsed(**values: Any) -> None:
        as_json, quiet = values.pop("json_"), values.pop("quiet")
        config, verbose = values.pop("config_"), values.pop("verbose")
        mode = "json" if as_json else "quiet" if quiet else "human"
        flags = {k: v for k, v in values.items() if v is not None and v != []}
        submit(Request(spec, flags, config, mode, verbose))

    own = spec.settings.__annotations__
    parameters = [
        _parameter(name, info, name == spec.positional)
        for name, info in spec.settings.model_fields.items()
        if name != "trainer"
    ]
    parameters.sort(key=lambda p: (p.name != spec.positional, p.name not in own))
    common = {
        "config_": (
            str | None,
            typer.Option("--config", help="Settings file (default: ./gptoss.toml if it exists)."),
        ),
        "json_": (bool, typer.Option("--json", help="Print the result as one JSON document.")),
        "quiet": (bool, typer.Option("--quiet", "-q", help="Print the result only.")),
        "verbose": (bool, typer.Option("--verbose", "-v", help="Let the libraries speak too.")),
    }
    for name, (kind, option) in common.items():
        default = None if name == "config_" else False
        parameters.append(_keyword(name, kind, option, default))
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {p.name: p.annotation for p in parameters}
    return parsed


def epilog(spec: Command) -> str:
    """Return the examples as the last lines of the help."""
    # \b keeps Click from re-wrapping the lines
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in spec.examples)


def _keyword(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _parameter(name: str, info: FieldInfo, positional: bool) -> inspect.Parameter:
    """Return a parameter whose default is None: not given."""
    text = f"{info.description or ''}{_default(info)}"
    if positional:
        kind = list[str] if get_origin(info.annotation) is list else str
        metavar = f"{name.upper().removesuffix('S')}{'...' if kind is not str else ''}"
        argument = typer.Argument(help=text, metavar=metavar, show_default=False)
        return _keyword(name, kind | None, argument, None)
    flag = flag_of(name)
    if info.annotation is bool:
        spelling = f"{flag}/--no-{flag[2:]}" if info.default else flag
        option = typer.Option(spelling, help=text, show_default=False)
        return _keyword(name, bool | None, option, None)
    many = get_origin(info.annotation) is list
    option = typer.Option(flag, help=text, metavar=_metavar(info.annotation), show_default=False)
    return _keyword(name, (list[str] if many else str) | None, option, None)


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value is False or value == []:
        return ""
    if isinstance(value, list):
        shown = ",".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value)
    else:
        shown = "yes" if value is True else str(value)
    return f" [default: {shown}]"


def _metavar(annotation: Any) -> str:
    """Name the kind of value a flag takes: N, X, TEXT or its choices."""
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin is list:
        return _metavar(get_args(annotation)[0])
    if origin is Annotated:
        return _metavar(get_args(annotation)[0])
    members = [a for a in get_args(annotation) if a is not type(None)]
    if origin is Union or members:
        return "|".join(dict.fromkeys(_metavar(m) for m in members))
    return {int: "N", float: "X"}.get(annotation, "TEXT")
