"""The trained adapter as a folder, and a zip file, that others can load."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from gptoss_tools.core.publish import read_manifest, require_free, temporary_name, write_json
from gptoss_tools.core.runs import Run
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import ConfigError
from gptoss_tools.models.names import TINY
from gptoss_tools.notebook.display import display_for
from gptoss_tools.notebook.session import TrainerState, settings_of
from gptoss_tools.settings import TrainSettings

CONFIG = "adapter_config.json"
OURS = "exported_run"
# What only a run that goes on needs; all else in a checkpoint is the adapter and its tokenizer.
_OF_TRAINING = ("*.pt", "*.pth", "training_args.bin", "trainer_state.json", "manifest.json")
_LEFT_OUT = (*_OF_TRAINING, ".rolling", "README.md")


def export_checkpoint(config: TrainSettings, state: TrainerState) -> str:
    """Copy the newest adapter of the run, with its tokenizer, to a folder; return its path.

    Newest by step number; of a finished run it is the final one. Stock PEFT loads the folder.
    With `zip_export` FOLDER.zip holds the same. An older export of this kind is replaced. Raises
    RunFolderError where nothing was saved yet or the folder holds something else, ConfigError for
    a `state` that is none: what `train_grpo` returned, or `session.state` after it.
    """
    if not isinstance(state, TrainerState):
        raise ConfigError(
            f"export_checkpoint was given no state of a training but {_kind(state)}",
            hint="export_checkpoint(config, train_grpo(config, session))",
        )
    config = settings_of(config)
    run = Run(state.run)
    whole = run.model()
    adapter = None if whole is not None else run.adapter()
    source = whole if whole is not None else adapter.path  # type: ignore[union-attr]
    folder = Path(config.export_dir or _exports(run) / f"{run.path.name}-adapter")
    ours = OURS in (read_manifest(folder) or {})
    if not ours:
        require_free(folder, hint="choose another export_dir")
    with whole_folder(folder, replace=ours, **{OURS: str(run.path)}) as fresh:
        shutil.copytree(
            source, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_LEFT_OUT)
        )
        if adapter is not None:
            _name_base(fresh, run)
    label = f"model in {whole}" if adapter is None else adapter.label
    lines = [
        f"{label} -> {folder}",
        *_usage(folder, str(run.settings["model"])),
    ]
    if config.zip_export:
        lines.insert(1, f"packed: {_pack(folder)}")
    display_for(config.quiet).result("\n".join(lines))
    return str(folder)


def _kind(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"


def _exports(run: Run) -> Path:
    """`exports` beside `runs`: here, or on the Drive where the run is."""
    home = run.path.parent
    return home.parent / "exports" if home.name == "runs" else Path("exports")


def _name_base(folder: Path, run: Run) -> None:
    """Name the base as the run did, where that was no folder of this machine."""
    path, word = folder / CONFIG, str(run.settings["model"])
    if path.is_file() and not Path(word).is_dir():
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**config, "base_model_name_or_path": word})


def _pack(folder: Path) -> Path:
    """Write FOLDER.zip, whole or not at all."""
    final = folder.with_name(folder.name + ".zip")
    partial = temporary_name(final)
    made = shutil.make_archive(str(partial), "zip", folder.parent, folder.name)
    os.replace(made, final)
    return final


def _usage(folder: Path, base: str) -> list[str]:
    lines = [f"gptoss generate {folder} --prompt-file prompt.txt"]
    if not (folder / CONFIG).is_file() or base == TINY:  # which is no model that others know
        return lines
    return [
        *lines,
        f"model = AutoModelForCausalLM.from_pretrained({base!r})",
        f"model = PeftModel.from_pretrained(model, {str(folder)!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})",
    ]
