"""Settings from flags, variables and TOML, with the origin of every value.

Order: flag > variable > `[command]` table > top level of the TOML file > default. This is the only
file that reads `GPTOSS_*` variables or gptoss.toml. Secrets are never settings.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_origin

from pydantic import ValidationError, create_model

from . import settings as declared
from .aliases import ALIASES, aliased, unheeded
from .errors import ConfigError
from .settings import Settings, hint_of, spelled

S = TypeVar("S", bound=Settings)

PREFIX = "GPTOSS_"
# Read elsewhere: the settings file, tracebacks, and where the tiny model is kept.
OWN_VARIABLES = ("GPTOSS_CONFIG", "GPTOSS_DEBUG", "GPTOSS_CACHE")
# The original system's variables keep working; GPTOSS_* wins where both are set.
SEED_VARIABLES = {
    "GRPO_LOG_COMPLETIONS": "log_completions",
    "GRPO_COMPLETION_LOG_PATH": "completion_log_path",
    "GRPO_STEPS_PER_GENERATION": "steps_per_generation",
    "HF_REPO_ID": "repo_id",
}
COMMAND_SETTINGS: dict[str, type[Settings]] = {
    "make-dataset": declared.MakeDatasetSettings,
    "convert-harmony": declared.ConvertHarmonySettings,
    "calc-reward": declared.CalcRewardSettings,
    "prepare-data": declared.PrepareDataSettings,
    "check-data": declared.CheckDataSettings,
    "rewards": declared.RewardsSettings,
    "train-grpo": declared.TrainSettings,
    "train-sft": declared.SftSettings,
    "pretrain": declared.PretrainSettings,
    "resume": declared.ResumeSettings,
    "test-adapter": declared.TestAdapterSettings,
    "generate": declared.GenerateSettings,
    "evaluate": declared.EvaluateSettings,
    "export": declared.ExportSettings,
    "verify-export": declared.VerifyExportSettings,
    "runs": declared.RunsSettings,
    "report": declared.ReportSettings,
    "pipeline": declared.PipelineSettings,
    "demo": declared.DemoSettings,
    "doctor": declared.DoctorSettings,
}


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Settings and where each value came from."""

    settings: S
    origins: dict[str, str] = field(default_factory=dict)
    line: str = ""  # the command line as it was typed
    config: str | None = None  # --config
    notes: list[str] = field(default_factory=list)  # variables that change nothing here

    @property
    def explicit(self) -> set[str]:
        """Names given by flag or variable, not by a file or a default."""
        others = {*SEED_VARIABLES, *(name for table in ALIASES.values() for name in table)}
        return {k for k, v in self.origins.items() if v.startswith(("--", PREFIX)) or v in others}


def load(
    model: type[S],
    command: str,
    *,
    flags: Mapping[str, Any] | None = None,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded[S]:
    """Resolve `model` for `command`.

    `flags` holds only what the user gave. Raises ConfigError naming the setting and its origin for
    an unknown key, a near miss of a variable, or a value out of range.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(found: Mapping[str, Any], origin: Mapping[str, str]) -> None:
        for name, value in found.items():
            values[name], origins[name] = value, origin[name]

    for table, where in _toml_tables(model, command, config or environ.get("GPTOSS_CONFIG")):
        take(table, {name: where for name in table})
    take(*_variables(model, command, environ))
    given = {k: v for k, v in (flags or {}).items() if v is not None}
    take(given, {name: flag_of(name) for name in given})
    try:
        built = model(**values)
    except ValidationError as error:
        raise _readable(error, values, origins) from None
    where = {name: origins.get(name, "default") for name in model.model_fields}
    return Loaded(built, where, config=config, notes=unheeded(command, environ))


def cache_dir() -> Path:
    """Return where the tiny model is kept: GPTOSS_CACHE, else the user's cache folder."""
    if own := os.environ.get("GPTOSS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptoss"


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + spelled(name).replace("_", "-")


def near_miss(name: str, known: list[str], cutoff: float = 0.75) -> str | None:
    """Return the known name closest to `name`, or None when nothing is close."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def _known_settings() -> set[str]:
    """The names of all settings, as users write them."""
    return {spelled(name) for model in COMMAND_SETTINGS.values() for name in model.model_fields}


def _toml_tables(model: type[Settings], command: str, path: str | None):
    """Yield (values, origin) of the file's top level and of this command's table."""
    file = Path(path) if path else Path("gptoss.toml")
    if not file.exists():
        if path:
            raise ConfigError(f"settings file `{file}` does not exist", "check --config")
        return
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file `{file}` is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"settings file `{file}` cannot be read: {error.strerror}") from None
    trainer = document.pop("trainer", None)
    tables = {k: v for k, v in document.items() if isinstance(v, dict)}
    top = {k: v for k, v in document.items() if k not in tables}
    _refuse_unknown(top, _known_settings(), f"{file}")
    _refuse_unknown(tables, set(COMMAND_SETTINGS), f"{file}", "table")
    for name, table in tables.items():
        allowed = {spelled(n) for n in COMMAND_SETTINGS[name].model_fields} - {"trainer"}
        _refuse_unknown(table, allowed, f"{file} [{name}]")
    fields = {spelled(name): name for name in model.model_fields}
    yield {fields[k]: v for k, v in top.items() if k in fields}, str(file)
    yield {fields[k]: v for k, v in tables.get(command, {}).items()}, f"{file} [{command}]"
    if trainer is not None and "trainer" in model.model_fields:
        yield {"trainer": trainer}, f"{file} [trainer]"


def _refuse_unknown(found: Mapping[str, Any], known: set[str], where: str, what: str = "key"):
    for name in found:
        if name not in known:
            close = near_miss(name.replace("-", "_") if what == "key" else name, sorted(known))
            hint = f"did you mean `{close}`?" if close else "`gptoss config` lists the settings"
            raise ConfigError(f"`{name}` in {where} is not a known {what}", hint)


def _variables(model: type[Settings], command: str, environ: Mapping[str, str]):
    """Return (values, origins) from GPTOSS_* and the original systems' variables."""
    names = {PREFIX + name.upper() for name in _known_settings() - {"trainer"}}
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in names and variable not in OWN_VARIABLES:
            # gpt-oss has variables of its own, so only a near miss of ours is an error.
            close = near_miss(variable, sorted(names), cutoff=0.9)
            if close:
                raise ConfigError(f"`{variable}` is not a setting", f"did you mean `{close}`?")
    raw: dict[str, tuple[str, str]] = aliased(command, environ)
    for variable, name in SEED_VARIABLES.items():
        if environ.get(variable) and name in model.model_fields:
            raw[name] = (environ[variable], variable)
    for name in model.model_fields:
        variable = PREFIX + spelled(name).upper()
        if variable in environ and name != "trainer":
            raw[name] = (environ[variable], variable)
    values = _parse_variables(model, {name: text for name, (text, _) in raw.items()}, raw)
    return values, {name: raw[name][1] for name in values}


def _parse_variables(model: type[Settings], texts: dict[str, str], raw) -> dict[str, Any]:
    """Let pydantic-settings read the texts: it knows which fields hold JSON."""
    if not texts:
        return {}
    from pydantic_settings import BaseSettings, EnvSettingsSource  # 70 ms that -h need not pay

    class Source(EnvSettingsSource):
        def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
            is_list = get_origin(field.annotation) is list
            if is_list and not value.lstrip().startswith("["):
                return [part.strip() for part in value.split(",") if part.strip()]
            try:
                return json.loads(value)
            except json.JSONDecodeError:
                where = f"`{spelled(field_name)}` = '{value}' (from {raw[field_name][1]})"
                raise ConfigError(
                    f"{where} is neither a JSON list nor names separated by commas"
                ) from None

    fields = {n: (f.annotation, f) for n, f in model.model_fields.items() if n in texts}
    reader = Source(create_model("Reader", __base__=BaseSettings, **fields))  # type: ignore[call-overload]
    reader.env_vars = {name.lower(): text for name, text in texts.items()}
    found: dict[str, Any] = {}
    for name, info in reader.settings_cls.model_fields.items():
        value, _, is_complex = reader.get_field_value(info, name)
        found[name] = reader.prepare_field_value(name, info, value, is_complex)
    return found


def _readable(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]
) -> ConfigError:
    """Turn pydantic's first complaint into one sentence that names the setting and its origin."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return ConfigError(message[0].lower() + message[1:], hint_of(error))
    name = str(first["loc"][0])
    if first["type"] == "missing":
        # Every required setting is a command's argument; there is no flag of its name.
        hint = f"it stands behind the command, without a flag: {spelled(name).upper()}"
        return ConfigError(f"`{spelled(name)}` is required", hint)
    if first["type"] == "extra_forbidden":
        return ConfigError(f"`{spelled(name)}` is not a setting of this command")
    shown = values.get(name)
    where = f" (from {origins[name]})" if name in origins else ""
    said = f"`{spelled(name)}` = {shown!r}{where}: {message[0].lower() + message[1:]}"
    return ConfigError(said, hint_of(error))
