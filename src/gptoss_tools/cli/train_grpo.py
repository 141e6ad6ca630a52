"""gptoss train-grpo."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import TrainSettings
from .common import measured, train_or_plan
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
    outcome = train_or_plan(settings, loaded, settings.model)
    if outcome is None:
        return
    out.result(measured(outcome))
    out.hint(f"gptoss test-adapter {outcome.run}")
