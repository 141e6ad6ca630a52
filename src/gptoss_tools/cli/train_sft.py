"""gptoss train-sft."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import SftSettings
from .common import build_tiny_first, cache_dir, show_step
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
    out.result({name: value for name, value in vars(outcome).items() if value is not None})
    out.hint(f"gptoss generate {outcome.run} --prompt ...")
