"""gptoss train-sft."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import SftSettings
from .common import measured, train_or_plan
from .options import command


@command(
    "train-sft",
    SftSettings,
    examples=[
        "gptoss train-sft --model tiny --data data/train",
        "gptoss train-sft --data alpaca.json --adapter mixlora",
        "gptoss train-sft --data zwhe99/commonsense_170k --prompt-template alpaca --dry-run",
        "torchrun --nproc-per-node 8 -m gptoss_tools train-sft --data chats/",
    ],
)
def train_sft(settings: SftSettings, loaded: Loaded) -> None:
    """Train on instructions and their answers.

    LoRA by default, MixLoRA or the whole model with --adapter; gpt-oss or any other causal model.
    The result ends in RUN/adapter or RUN/model, checkpoints in RUN/checkpoints. A run that was
    interrupted goes on with `gptoss resume RUN` and ends with the same bits as one that was not.
    """
    outcome = train_or_plan(settings, loaded, settings.model)
    if outcome is None:
        return
    out.result(measured(outcome))
    from ..models.chats import can_answer

    if can_answer(settings.model):
        out.hint(f"gptoss generate {outcome.run} --prompt ...")
    else:  # generate would refuse it
        out.hint(f"{settings.model} has no chat template: load {outcome.run} with PEFT")
