"""pipeline.json: which stages of a pipeline are done, with which settings and inputs.

A stage's fingerprint covers its settings, its inputs and the stage before it, so a change anywhere
reaches everything after it.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Literal

from gptoss_tools.core.publish import write_json
from gptoss_tools.errors import RunFolderError

NAME = "pipeline.json"
State = Literal["new", "changed", "interrupted", "done"]


class Book:
    """What the folder's pipeline.json says, kept up to date on the disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.stages: dict[str, dict[str, Any]] = {}
        try:
            stages = json.loads(self.path.read_text(encoding="utf-8"))["stages"]
            self.stages = {str(name): {**stage} for name, stage in dict(stages).items()}
            for name, stage in self.stages.items():
                if not isinstance(stage.get("fingerprint"), str):
                    raise TypeError(f"stage {name} has no fingerprint")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self.path} cannot be read: {error}", hint="name another folder with --out"
            ) from error

    def entry(self, stage: str) -> dict[str, Any]:
        """What is known of a stage, {} if it was never begun."""
        return self.stages.get(stage, {})

    def state(self, stage: str, fingerprint: str) -> State:
        """Whether a stage with these settings and inputs is done, and if not, why."""
        known = self.entry(stage)
        if not known:
            return "new"
        if known["fingerprint"] != fingerprint:
            return "changed"
        return "done" if "finished" in known else "interrupted"

    def begin(self, stage: str, fingerprint: str, **facts: Any) -> None:
        """Note that a stage begins; the stages after it count as not done from now on."""
        names = list(self.stages)
        for later in names[names.index(stage) :] if stage in names else []:
            self.stages[later].pop("finished", None)
        self.stages[stage] = {"fingerprint": fingerprint, **facts}
        self._write()

    def finish(self, stage: str, seconds: float, figures: dict[str, Any]) -> None:
        """Note that a stage is done, and what came out."""
        self.stages[stage] |= {
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "figures": figures,
        }
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"format": 1, "stages": self.stages})


def fingerprint(*parts: Any) -> str:
    """Return a hash of anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:16]
