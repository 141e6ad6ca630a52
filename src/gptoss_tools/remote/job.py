"""What a command takes along to Modal: its command line there, and the files it reads here.

The volume `gptoss-work` is the working folder there, so a relative path means the same in both
places. What a setting names and exists here is sent, into a folder named after its content, and the
setting is rewritten; what does not exist here is looked for there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gptoss_tools.core.runs import HOME
from gptoss_tools.errors import ConfigError
from gptoss_tools.remote.child import TRAININGS
from gptoss_tools.remote.inputs import FOLDER, sent
from gptoss_tools.remote.volume import Upload
from gptoss_tools.settings import RemoteSettings, Settings

# Settings that name what a command reads, and those that name what it writes or goes on with.
INPUTS = (
    *("data", "eval_data", "paths", "series", "closed_loop", "prompt_file", "prompt_template"),
    *("target", "base", "model", "from_", "compare_with", "tokenizer", "task_folder"),
)
OUTPUTS = ("output_dir", "out", "run", "resume", "completion_log_path")
HERE = frozenset({*RemoteSettings.model_fields, "dry_run"})


@dataclass(frozen=True)
class Job:
    """A command for Modal. `output` is what to fetch afterwards, where that is known before."""

    argv: list[str]
    uploads: list[Upload]
    output: str | None = None
    modules: tuple[str, ...] = ()  # the user's own Python modules that it imports

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(
            len(one.source) if isinstance(one.source, bytes) else one.source.stat().st_size
            for one in self.uploads
        )


def plan_job(
    command: str,
    settings: Settings,
    *,
    explicit: Collection[str] = (),
    positional: str | None = None,
    modes: Sequence[str] = (),
) -> Job:
    """Return the job that does on Modal what `command` would do here.

    `explicit` settings stay flags, so that their origin stays what it was; others that differ from
    their default go into a settings file. Raises ConfigError for an output that would not be on the
    volume, DataError for an input that cannot be read.
    """
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    if values.get("nodes", 1) > 1 and command not in TRAININGS:
        raise ConfigError(f"`nodes` = {values['nodes']}: only a training runs on several machines")
    given, uploads = set(explicit), []
    for name in INPUTS:
        if values.get(name):
            values[name], found = sent(values[name])
            uploads += found
    for name in OUTPUTS:
        if values.get(name) is not None:
            values[name] = _on_volume(name, values[name])
    if "output_dir" in values and not values["output_dir"] and not values.get("resume"):
        values["output_dir"] = f"{HOME}/{command}-{time.strftime('%Y%m%d-%H%M%S')}"
        given.add("output_dir")
    if command == "evaluate" and not values["out"] and values["target"].startswith(FOLDER):
        values["out"] = f"evaluations/{PurePosixPath(values['target']).name}"
    fields = type(settings).model_fields
    changed = {
        name: value
        for name, value in values.items()
        if name not in HERE and value != fields[name].get_default(call_default_factory=True)
    }
    if positional is not None:
        given.add(positional)
    given.discard("trainer")  # a table of the settings file, never a flag
    file = _settings_file(command, {n: v for n, v in changed.items() if n not in given})
    line = [command, *_words(changed.pop(positional, None) if positional else None)]
    for name in (name for name in changed if name in given):
        line += _flag(name, changed[name])
    line += [f"--config={file.remote}", *modes]
    made = (values[n] for n in ("output_dir", "resume", "run", "out") if values.get(n))
    return Job(
        line,
        [*dict.fromkeys(uploads), file],
        next(made, None),
        _modules(values.get("reward")),
    )


def _on_volume(name: str, value: str) -> str:
    """Return an output path as it reads on the volume; ConfigError if it leads elsewhere."""
    path = PurePosixPath(Path(value).as_posix())
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"`{name}` = {value!r}: with --modal a command writes to its volume, where only a "
            "relative path without .. leads",
            hint=f"--{name.replace('_', '-')} {HOME}/{path.name}",
        )
    return str(path)


def _settings_file(command: str, values: dict[str, Any]) -> Upload:
    """Return the settings file of the job, as TOML."""
    values = dict(values)
    trainer = values.pop("trainer", {})
    lines = [f"[{command}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
    if trainer:
        lines += ["[trainer]", *(f"{_toml(name)} = {_toml(v)}" for name, v in trainer.items())]
    content = ("\n".join(lines) + "\n").encode()
    return Upload(content, f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}/gptoss.toml")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # TOML reads JSON's strings, but for surrogates and the bare DEL character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.strip("_").replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [f"{flag}={one}" for one in _words(value)]


def _modules(rewards: list[str] | None) -> tuple[str, ...]:
    """Return the top-level modules of `--reward package.module:function` that are the user's."""
    own = [reward.partition(":")[0].partition(".")[0] for reward in rewards or [] if ":" in reward]
    return tuple(dict.fromkeys(top for top in own if top and top != "gptoss_tools"))
