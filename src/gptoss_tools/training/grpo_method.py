"""train-grpo as one of the ways to train: a decision table, groups, held-out regret."""

from __future__ import annotations

from pathlib import Path

from transformers import set_seed

from gptoss_tools.evaluation.earned import by_reward
from gptoss_tools.rewards.combined import names_of
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training.grpo import DecisionTrainer, make_config
from gptoss_tools.training.heldout import HeldOut, HeldOutReward
from gptoss_tools.training.method import Method
from gptoss_tools.training.preparation import GrpoPrepared, plan, prepare
from gptoss_tools.training.sitting import Sitting
from gptoss_tools.training.tracking import CompletionLog


def build(sitting: Sitting) -> DecisionTrainer:
    """Load the base, put a new adapter on it and make its trainer."""
    run, settings, prepared = sitting.run, sitting.settings, sitting.prepared
    assert isinstance(prepared, GrpoPrepared)
    completions = None
    if prepared.is_main and settings.log_completions:
        path = Path(settings.completion_log_path or run.completions_path)
        more = ["expected_reward"] if settings.action_gradient == "exact" else []
        completions = CompletionLog(path, sitting.segment, names_of(settings), more)
    held_out = None
    if prepared.held_out is not None:
        measure = HeldOutReward if by_reward(prepared.held_out) else HeldOut
        held_out = measure(run, prepared.held_out, settings)
        sitting.callbacks.append(held_out)
    attention = settings.attn_implementation
    if settings.share_prompts and attention == "flex_attention":
        attention = "auto"  # of branches alone: drawing would build its mask for every token
    model = sitting.load(
        prepared.model,
        dtype=settings.dtype,
        attn_implementation=attention,
        experts=settings.experts,
        experts_implementation=settings.experts_implementation,
        device=settings.device,
        cache_dir=sitting.cache_dir,
    )
    # Trackers come as callbacks; `resume` may allow what the run's own settings did not.
    silent = settings.model_copy(
        update={"report_to": "none", "allow_changes": sitting.allow_changes}
    )
    rows = len(prepared.dataset)
    set_seed(settings.seed)  # the adapter's first weights are drawn here
    trainer = DecisionTrainer.build(
        silent,
        model=model,
        tokenizer=prepared.tokenizer,
        dataset=prepared.dataset,
        args=make_config(silent, str(run.checkpoints_path), prepared.world_size, rows=rows),
        on_completions=completions,
        callbacks=sitting.callbacks,
    )
    if held_out is not None:
        held_out.trainer = trainer
    return trainer


METHOD = Method("train-grpo", "grpo", TrainSettings, prepare, build, plan)
