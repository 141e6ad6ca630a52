"""gptoss resume."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import ResumeSettings
from .common import cache_dir, measured, show_step
from .options import command


@command(
    "resume",
    ResumeSettings,
    positional="run",
    examples=[
        "gptoss resume",
        "gptoss resume runs/first --max-steps 400",
        "gptoss resume runs/first/checkpoints/step-000100",
    ],
)
def resume(settings: ResumeSettings, loaded: Loaded) -> None:
    """Go on with an interrupted run, exactly.

    Refuses changed data, rewards, settings or number of processes unless --allow-changes is given.
    """
    from ..training.train import plan
    from ..training.train import resume as go_on

    if settings.dry_run:
        out.result(plan(settings))
        return
    with out.progress("step", None) as update:
        outcome = go_on(
            settings,
            origins=loaded.origins,
            command=loaded.line,
            on_step=show_step(update),
            on_notice=out.notice,
            cache_dir=cache_dir(),
        )
    out.result(measured(outcome))
    if (outcome.run / "sample.txt").is_file():  # pretrain: what it writes is there already
        out.hint(f"cat {outcome.run}/sample.txt")
    else:
        out.hint(f"gptoss generate {outcome.run} --prompt ...")
