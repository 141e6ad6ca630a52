"""gptoss pretrain."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import PretrainSettings
from .common import measured, train_or_plan
from .options import command


@command(
    "pretrain",
    PretrainSettings,
    examples=[
        "gptoss pretrain --data story.txt",
        "gptoss pretrain --data texts/ --model-type gpt-oss --tokenizer bpe --max-steps 2000",
        "gptoss pretrain --data letters.md --from gpt2 --adapter lora",
        "gptoss pretrain --resume runs/pretrain-001 --resume-steps 300 --data more.txt",
    ],
)
def pretrain(settings: PretrainSettings, loaded: Loaded) -> None:
    """Train a small language model on text, new or from another.

    The model ends in RUN/model (or RUN/adapter), what it then writes in RUN/sample.txt, checkpoints
    in RUN/checkpoints. A run that goes on takes everything from its checkpoint; data and settings
    that are given may differ, and each difference is told (docs/pretrain.md).
    """
    for note in loaded.notes:
        out.notice(note)
    outcome = train_or_plan(settings, loaded, settings.from_ or "")
    if outcome is None:
        return
    sample = outcome.run / "sample.txt"
    figures = measured(outcome)
    if outcome.eval_loss_first is not None and outcome.eval_loss is not None:
        figures["eval_loss_change"] = outcome.eval_loss - outcome.eval_loss_first
    if sample.is_file():
        figures["sample"] = sample.read_text(encoding="utf-8")
    out.result(figures)
    out.hint(f"gptoss resume {outcome.run} --resume-steps {settings.max_steps}")
