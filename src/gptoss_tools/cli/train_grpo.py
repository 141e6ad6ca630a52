"""gptoss train-grpo."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import TrainSettings
from .common import build_tiny_first, cache_dir, show_step
from .options import command


@command(
    "train-grpo",
    TrainSettings,
    examples=[
        "gptoss train-grpo --model tiny",
        "gptoss train-grpo --data tables/ --output-dir runs/first --max-steps 200",
        "torchrun --nproc-per-node 8 -m gptoss_tools train-grpo --prompts-per-step 8",
    ],
)
def train_grpo(settings: TrainSettings, loaded: Loaded) -> None:
    """Train a LoRA adapter with GRPO.

    The adapter ends in RUN/adapter, checkpoints in RUN/checkpoints. A run that was interrupted goes
    on with `gptoss resume RUN` and ends with the same bits as one that was not.
    """
    from ..training.train import plan, train

    explicit = loaded.explicit - {"resume", "allow_changes"}
    if settings.dry_run:
        out.result(plan(settings, explicit))
        return
    if settings.resume is None:
        build_tiny_first(settings.model)
    with out.progress("step", settings.max_steps) as update:
        outcome = train(
            settings,
            explicit=explicit,
            origins=loaded.origins,
            command=loaded.line,
            on_step=show_step(update),
            on_notice=out.notice,
            cache_dir=cache_dir(),
        )
    out.result(vars(outcome))
    out.hint(f"gptoss test-adapter {outcome.run}")
