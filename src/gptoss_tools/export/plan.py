"""What an export will read and change, found out before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptoss_tools.core.publish import MANIFEST
from gptoss_tools.errors import DataError, RunFolderError
from gptoss_tools.export import adapter as adapters
from gptoss_tools.export.experts import ExpertChange, refusal
from gptoss_tools.export.record import RECORD
from gptoss_tools.export.safetensors_io import (
    Checkpoint,
    open_checkpoint,
    read_object,
    table_problems,
)

_LEFT_BEHIND = (".bin", ".gguf", ".pt", ".pth", ".safetensors", ".onnx", ".msgpack", ".h5")
_NOT_THE_BASE = {"README.md", "SERVING.md", "Modelfile", MANIFEST, RECORD, adapters.CONFIG}
Progress = Callable[[str, int, int], None]
"""Called with (what, bytes done, bytes in all)."""


def tell_nobody(what: str, done: int, total: int) -> None:
    """The listener where nobody listens."""


@dataclass(frozen=True)
class ExportPlan:
    """Base, changes, and what else belongs to the model: `extra` is config, tokenizer, terms."""

    adapter_dir: Path
    base: Checkpoint
    base_name: str
    changes: tuple[adapters.Change, ...]
    experts: tuple[ExpertChange, ...]
    extra: tuple[Path, ...]

    @property
    def bytes_rewritten(self) -> int:
        """Bytes of the base's tensors that the adapter changes."""
        return sum(change.base.nbytes for change in (*self.changes, *self.experts))

    @property
    def copies(self) -> tuple[Path, ...]:
        """Every file that an export in the base's own layout starts from.

        The index comes last, so a folder that was cut off does not even look like a checkpoint.
        """
        return (*self.base.shards, *self.extra, *([self.base.index] if self.base.index else []))

    @property
    def bytes_total(self) -> int:
        """Bytes of all `copies`."""
        return sum(path.stat().st_size for path in self.copies)


def plan_export(
    adapter_dir: Path, base_dir: Path, *, experts: bool = False, gpt_oss: bool = True
) -> ExportPlan:
    """Check that the adapter fits the base, and list what will be copied and rewritten.

    `experts`: whether LoRA on experts can be held. A base that is no `gpt_oss` is taken as it is,
    without a look at its table of tensors. Raises DataError or ConfigError for whatever
    cannot be merged, see `export.adapter`.
    """
    base = open_checkpoint(base_dir)
    changes = adapters.read_adapter(adapter_dir, base)
    if changes.experts and not experts:
        raise refusal(adapter_dir, changes.experts[0].base.name)
    extra = extra_files(base)
    if not any(path.name == "config.json" for path in extra):
        raise DataError(f"{base_dir} holds no config.json")
    config = read_object(base_dir / "config.json")
    if wrong := list(table_problems(base, config)) if gpt_oss else []:
        more = f" ({len(wrong)} such problems)" if len(wrong) > 1 else ""
        raise DataError(f"{base_dir} is no whole gpt-oss: {wrong[0]}{more}", hint="fetch it again")
    return ExportPlan(
        adapter_dir=adapter_dir,
        base=base,
        base_name=name_of(base_dir, adapter_dir),
        changes=changes.plain,
        experts=changes.experts,
        extra=extra,
    )


def extra_files(base: Checkpoint) -> tuple[Path, ...]:
    """Config, tokenizer, template and terms of a base: its files but weights, index and cards."""
    return tuple(
        path
        for path in sorted(base.folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix not in _LEFT_BEHIND
        and path.name not in _NOT_THE_BASE
        and path != base.index
    )


def name_of(base_dir: Path, adapter_dir: Path) -> str:
    """The base's name without a path of this machine: the adapter's own word, or the folder's."""
    named = adapters.read_config(adapter_dir).get("base_model_name_or_path") or ""
    return base_dir.resolve().name if not named or Path(named).is_absolute() else named


def check_out(out: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    """Raise RunFolderError where `out` holds what is read, is not ours, or may not be replaced."""
    for source in sources:
        if source.resolve().is_relative_to(out.resolve()):
            raise RunFolderError(f"{out} holds {source}, which the export reads", hint="use --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise RunFolderError(f"{out} exists and is no export of ours", hint="name another --out")
    if not overwrite:
        raise RunFolderError(f"{out} exists", hint="pass --overwrite, or name another --out")
