"""What an export says of itself: the report a caller gets, and export.json in the folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptoss_tools.core.mxfp4 import PACKED
from gptoss_tools.core.runs import open_run
from gptoss_tools.export import adapter as adapters
from gptoss_tools.export.rounding import REQUANTISED, Rounding, together, warnings_about

RECORD = "export.json"
_VERSIONS = ("gptoss-tools", "torch")
_SETTINGS = (
    *("lora_r", "lora_alpha", "lora_target_modules", "learning_rate", "max_steps", "seed"),
    *("num_generations", "prompts_per_step", "gradient_accumulation_steps", "num_iterations"),
    *("loss_type", "scale_rewards", "beta", "temperature", "reward", "reward_weights"),
    "invalid_reward",
    *("max_prompt_length", "max_completion_length", "action_pattern"),
)


@dataclass(frozen=True)
class LogitGap:
    """Largest absolute differences over all positions and tokens; `skipped` says why there is none.

    `rounding`: export against base + adapter unmerged. `adapter`: base + adapter against the base.
    """

    rounding: float | None = None
    adapter: float | None = None
    positions: int = 0
    skipped: str = ""

    def __str__(self) -> str:
        if self.rounding is None:
            return f"logits not compared: {self.skipped}"
        return (
            f"largest logit difference to the unmerged adapter {self.rounding:.3g}, at "
            f"{self.positions} positions (the adapter itself moves logits by up to "
            f"{self.adapter:.3g})"
        )


@dataclass
class ExportReport:
    """What an export did; a dry run measures the same and has `written` False.

    `ratio` and `kept` are over all changed tensors together, see `rounding.Rounding`.
    """

    out: Path
    format: str
    base_name: str
    written: bool
    tensors: list[Rounding]
    ratio: float
    kept: float
    bytes_total: int
    bytes_rewritten: int
    seconds: float = 0.0
    copied_by: str = ""
    logits: LogitGap | None = None
    warnings: list[str] = field(default_factory=list)

    def conclude(self) -> None:
        """Sum up the rounding of all changed tensors, with the warnings that follow from it."""
        whole = together("all", self.tensors)
        self.ratio, self.kept = whole.ratio, whole.kept
        # What is packed into MXFP4 again has a warning of its own.
        once = [one for one in self.tensors if one.kind != REQUANTISED and one.delta_norm]
        if once or not whole.ratio:
            self.warnings += warnings_about(together("all", once or self.tensors))

    def by_kind(self) -> list[Rounding]:
        """All layers of each kind of module as one tensor each, and everything together."""
        groups: dict[str, list[Rounding]] = {}
        for one in self.tensors:
            groups.setdefault(_module(one.name), []).append(one)
        found = [together(name, group) for name, group in groups.items()]
        return [*found, together("all", self.tensors)] if found else []

    def to_record(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"out": str(self.out)}


def _module(name: str) -> str:
    """`...self_attn.q_proj.weight` -> q_proj, `...experts.down_proj` -> experts.down_proj."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1] in PACKED else parts[-2]


def write_record(adapter_dir: Path, folder: Path, report: ExportReport) -> None:
    """Write export.json: format, base, hashes, training, rounding; no local paths.

    Of an unmerged adapter the files that are there by now are hashed too.
    """
    unmerged = sorted(path for path in folder.iterdir() if report.format == "adapter")
    record = {
        "format": report.format,
        "base": report.base_name,
        "adapter_sha256": sha256(adapter_dir / adapters.WEIGHTS),
        "adapter_config_sha256": sha256(adapter_dir / adapters.CONFIG),
        "files_sha256": {path.name: sha256(path) for path in unmerged if path.suffix != ".md"},
        "training": _training(adapter_dir),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "bytes_total": report.bytes_total,
        "bytes_rewritten": report.bytes_rewritten,
        "ratio": report.ratio,
        "kept": report.kept,
        "logits": asdict(report.logits) if report.logits else None,
        "warnings": report.warnings,
        "tensors": [asdict(rounding) for rounding in report.tensors],
    }
    path = folder / RECORD
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _training(adapter_dir: Path) -> dict[str, Any]:
    """What the adapter's run says of itself; names of files and folders stay at home."""
    run = open_run(adapter_dir)
    data = run.config.get("data")
    facts = {key: run.settings[key] for key in _SETTINGS if key in run.settings}
    if isinstance(data, dict):
        facts |= {f"data_{key}": data[key] for key in ("sha256", "rows") if key in data}
    return facts


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
