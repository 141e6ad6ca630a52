"""gptoss runs."""

from __future__ import annotations

from typing import Any

from ..console import out
from ..load import Loaded
from ..settings import RunsSettings
from .options import command


@command(
    "runs",
    RunsSettings,
    positional="folders",
    examples=["gptoss runs", "gptoss runs runs/first experiments/ --json"],
)
def runs(settings: RunsSettings, loaded: Loaded) -> None:
    """List runs: state, steps, held-out regret, size.

    Newest last. The regret is that of `gptoss evaluate`, else the best one measured while training
    (`--eval-steps`); where there is none, the held-out reward is shown. The invalid share is that
    of the newest step. Other folders are skipped.
    """
    from pathlib import Path

    from ..core.overview import RunFacts, list_runs

    # Without any run there is not even the default folder, and nothing wrong with that.
    asked = loaded.origins["folders"] != "default"
    wanted = [f for f in settings.folders if asked or Path(f).is_dir()]
    found = list_runs(wanted)

    def row(facts: RunFacts) -> dict[str, Any]:
        return {
            "run": str(facts.path),
            "state": facts.state,
            "steps": "" if facts.step is None else f"{facts.step}/{facts.max_steps or '?'}",
            "regret": facts.regret,
            "invalid": "" if facts.invalid is None else f"{facts.invalid:.1%}",
            "size": _size(facts.bytes),
            "created": (facts.created or "")[:16].replace("T", " "),
        }

    def with_reward(facts: RunFacts) -> dict[str, Any]:
        line = row(facts)
        return {**dict(list(line.items())[:4]), "reward": facts.reward, **line}

    data = {"runs": [vars(facts) for facts in found]}
    if not found:
        out.result(data, f"no runs in {', '.join(settings.folders)}")
        out.hint("gptoss train-grpo starts one")
        return
    shown = with_reward if any(facts.reward is not None for facts in found) else row
    out.table([shown(facts) for facts in found], data)
    for facts in found:
        if facts.problem:
            out.warning(facts.problem)
    good = [facts for facts in found if facts.state != "damaged"]
    if good:
        out.hint(f"gptoss report {good[-1].path}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
