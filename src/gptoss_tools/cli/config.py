"""gptoss config."""

from __future__ import annotations

from pydantic import Field

from ..console import out
from ..errors import ConfigError
from ..load import COMMAND_SETTINGS, Loaded, load, near_miss
from ..settings import Settings, spelled
from .options import command


class ConfigSettings(Settings):
    """config."""

    name: str = Field("train-grpo", description="Which command.")


@command(
    "config",
    ConfigSettings,
    positional="name",
    examples=["gptoss config", "gptoss config calc-reward", "gptoss config train-grpo --json"],
)
def config(settings: ConfigSettings, loaded: Loaded) -> None:
    """Show every setting of a command and where its value comes from.

    Order: flag, variable GPTOSS_NAME, [command] table of gptoss.toml, its top level, default.
    """
    model = COMMAND_SETTINGS.get(settings.name)
    if model is None:
        close = near_miss(settings.name, sorted(COMMAND_SETTINGS))
        raise ConfigError(
            f"`{settings.name}` is no command with settings",
            f"did you mean `{close}`?" if close else f"one of {', '.join(COMMAND_SETTINGS)}",
        )
    required = {n: "" for n, info in model.model_fields.items() if info.is_required()}
    found = load(model, settings.name, flags={n: "PATH" for n in required})
    rows = [
        {
            "setting": spelled(name),
            "value": repr(value),
            "origin": "required" if name in required else found.origins[name],
        }
        for name, value in found.settings.model_dump().items()
    ]
    out.table(rows, {row["setting"]: row for row in rows})
