"""gptoss pretrain."""

from __future__ import annotations

from ..console import out
from ..load import Loaded
from ..settings import PretrainSettings
from .common import build_tiny_first, cache_dir, show_step
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
    from ..training.train import plan, train

    explicit = loaded.explicit - {"resume", "allow_changes"}
    for note in loaded.notes:
        out.notice(note)
    if settings.dry_run:
        out.result(plan(settings, explicit))
        return
    if settings.resume is None:
        build_tiny_first(settings.from_ or "")
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
    sample = outcome.run / "sample.txt"
    figures = {name: value for name, value in vars(outcome).items() if value is not None}
    if outcome.eval_loss_first is not None and outcome.eval_loss is not None:
        figures["eval_loss_change"] = outcome.eval_loss - outcome.eval_loss_first
    if sample.is_file():
        figures["sample"] = sample.read_text(encoding="utf-8")
    out.result(figures)
    out.hint(f"gptoss resume {outcome.run} --resume-steps {settings.max_steps}")
