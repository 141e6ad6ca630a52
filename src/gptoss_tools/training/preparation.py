"""Everything between settings and the first weight: the checks, the data, the tokenizer, the plan.

`prepare` runs on every rank and refuses what can be refused; it writes nothing. `plan` says what a
run would do and loads no model. What the run folder records of itself: `records`.
"""

from __future__ import annotations

import datetime
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import constants as hub_constants
from transformers import GptOssConfig

from gptoss_tools.chat.families import HarmonyChat, RawPrompts, chat_of
from gptoss_tools.core.claims import next_free
from gptoss_tools.core.runs import Run
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.models.branch_attention import fuses
from gptoss_tools.models.chats import prompts_for
from gptoss_tools.models.experts import pin_experts
from gptoss_tools.models.loading import (
    choose_attention,
    context_of,
    load_tokenizer,
    read_config,
    resolve_model,
)
from gptoss_tools.models.machine import (
    available_bytes,
    branch_scores,
    eager_scores,
    resolve_device,
)
from gptoss_tools.models.snapshot import fingerprint
from gptoss_tools.rewards.combined import Rewards, own_sources
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training.configuring import build_dataset, make_config
from gptoss_tools.training.foreseen import foresee
from gptoss_tools.training.heldout import overlap
from gptoss_tools.training.prepared import Prepared
from gptoss_tools.training.ranks import join
from gptoss_tools.training.reading import (
    data_hash,
    held_out_table,
    telling,
    training_table,
    unscorable,
)
from gptoss_tools.training.rewarding import DecisionReward
from gptoss_tools.training.shared_prefix import check_family
from gptoss_tools.training.trackers import require_tracker


@dataclass(frozen=True, kw_only=True)
class GrpoPrepared(Prepared):
    """And the prompts as TRL reads them, with the held-out table where there is one."""

    dataset: Dataset
    held_out: DecisionTable | None = None

    def facts(self) -> dict[str, Any]:
        """How many rows the policy is measured on, and the files that hold own rewards."""
        return {
            "eval_data": None if self.held_out is None else {"rows": len(self.held_out)},
            "reward_sha256": own_sources(self.settings),
        }


def prepare(
    settings: TrainSettings,
    *,
    cache_dir: Path | None = None,
    home: str | None = None,
    held_bytes: int = 0,
) -> GrpoPrepared:
    """Check settings, machine and data, and read tables and tokenizer; write nothing.

    `home` is where the run began: relative paths that are not here are looked for there.
    `held_bytes` of the model are in memory already. Raises ConfigError, DataError, MachineError or
    RunFolderError.
    """
    hub_constants.HF_HUB_DISABLE_TELEMETRY = True  # trl, datasets and transformers all look here
    state = join(settings.device)
    require_tracker(settings.report_to)
    _require_packages(settings.trainer)
    device = resolve_device(settings.device)
    if settings.date is None:
        # Pinned, so that prompts kept as messages read the same when the run goes on tomorrow.
        settings = settings.model_copy(update={"date": datetime.date.today().isoformat()})
    name = settings.model
    if home and not Path(name).is_dir() and (Path(home) / name).is_dir():
        name = str(Path(home) / name)
    model = resolve_model(name, cache_dir=cache_dir)
    if Path(model).is_dir():
        model = str(Path(model).resolve())  # it ends up in the adapter, read from anywhere
    config = read_config(model)
    if isinstance(config, GptOssConfig):
        choose_attention(settings.attn_implementation, device, True)
    if settings.share_prompts:
        check_family(config)
        fuses(settings.attn_implementation, device)  # refuses what has no gradients there
    settings, notes = pin_experts(
        settings, config, device, **_tokens(settings), held_bytes=held_bytes
    )
    tokenizer = load_tokenizer(model, date=settings.date, cache_dir=cache_dir)
    chat = chat_of(
        tokenizer,
        date=settings.date,
        model_identity=settings.model_identity,
        reasoning_effort=settings.reasoning_effort,
    )
    if settings.action_gradient == "exact" and not isinstance(chat, HarmonyChat):
        raise ConfigError(
            "action_gradient exact finds the beginning of an answer by gpt-oss's channels, which "
            f"{settings.model} has not",
            hint="--action-gradient sampled",
        )
    table = training_table(settings, home, chat)
    DecisionReward.from_settings(settings, tokenizer)  # refuses unknown rewards and patterns
    dataset, dropped = build_dataset(table, tokenizer, settings)
    dataset, flat = telling(dataset, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same ones come again when training begins
        make_config(settings, "unused", state.num_processes, rows=len(dataset))
    if dropped:
        notes.append(f"{dropped} of {len(table)} rows have long prompts and are left out")
    if flat:
        notes.append(f"{flat} rows earn the same for every action and are left out (zero_signal)")
    if settings.prompts_per_step > len(dataset):
        notes.append(f"prompts_per_step is {len(dataset)}: the table has no more rows")
    if settings.tokens_per_forward and not settings.gradient_checkpointing:
        notes.append(
            "without gradient_checkpointing the activations of all forwards of a micro-step stay, "
            "and tokens_per_forward saves no memory"
        )
    notes += _attention_notes(settings, config, device) + unscorable(table, settings)
    held_out = held_out_table(settings, home, chat, tokenizer, context_of(config))
    if held_out is not None and (shared := overlap(table.prompts, held_out)):
        notes.append(f"{shared} of {len(held_out)} held-out prompts are trained on as well")
    return GrpoPrepared(
        settings=settings,
        rows=len(table),
        dropped=dropped,
        data_hash=data_hash(table, settings),
        dataset=dataset,
        tokenizer=tokenizer,
        model=model,
        base_hash=fingerprint(model),
        world_size=state.num_processes,
        is_main=state.is_main_process,
        held_out=held_out,
        notes=notes,
    )


def _require_packages(trainer: Mapping[str, Any]) -> None:
    """Raise MachineError if [trainer] asks TRL for a package that is not installed."""
    for name, package in (("use_vllm", "vllm"), ("use_liger_kernel", "liger_kernel")):
        if trainer.get(name) and importlib.util.find_spec(package) is None:
            raise MachineError(
                f"`{name}` in [trainer] needs the package {package}, which is not installed",
                hint=f"install {package}, or leave out {name}",
            )


def _attention_notes(settings: TrainSettings, config: Any, device: torch.device) -> list[str]:
    """Warn where eager attention over the longest allowed completions would not fit.

    Not an error: completions are usually shorter, and a step that does not fit can be resumed.
    """
    prompts, group = settings.prompts_per_step, settings.num_generations
    rows, length = prompts * group, settings.max_prompt_length + settings.max_completion_length
    if settings.share_prompts:
        if fuses(settings.attn_implementation, device):
            return []
        instead = ""
        of_group = settings.max_prompt_length + group * settings.max_completion_length
        need = branch_scores(
            config,
            prompts=min(prompts, max(1, _tokens(settings)["at_once"] // of_group)),
            group=group,
            prompt=settings.max_prompt_length,
            completion=settings.max_completion_length,
        )
    else:
        # Of other families transformers chooses attention that keeps no scores.
        keeps = ("auto", "eager") if isinstance(config, GptOssConfig) else ("eager",)
        if settings.attn_implementation not in keeps:
            return []
        instead = ", or try share_prompts" if settings.adapter != "mixlora" else ""
        need = eager_scores(config, rows=rows, length=length)
    free = available_bytes(device)
    if need <= free:
        return []
    return [
        f"eager attention over {rows} completions of {length} tokens would take {need / 1e9:.0f} "
        f"GB, and {device} has {free / 1e9:.0f} GB free: lower num_generations or "
        f"max_completion_length{instead}"
    ]


def plan(settings: TrainSettings, run: Run | None, reached: int) -> dict[str, Any]:
    """Say what training would do, `reached` steps into `run`; load and write nothing.

    Bytes are estimates for one process; `memory_bytes` is None where the model's shape is not known
    without the Hub, `data_sha256` where its way of writing prompts is not. Raises as `prepare`
    where that can be told without the model.
    """
    require_tracker(settings.report_to)
    Rewards(settings)  # refuses what is none
    chat = prompts_for(
        settings.model,
        date=settings.date,
        model_identity=settings.model_identity,
        reasoning_effort=settings.reasoning_effort,
        fetch=False,
    )
    table = training_table(settings, run.config.get("cwd") if run else None, chat)
    folder = run.path if run else Path(settings.output_dir or next_free())
    prompts = min(settings.prompts_per_step, len(table))
    per_step = prompts * settings.num_generations * settings.gradient_accumulation_steps
    steps = max(0, settings.max_steps - reached)
    completions = -(-per_step * steps // settings.num_iterations)
    return {
        "run": str(folder),
        "model": settings.model,
        "rows": len(table),
        "actions": int(table.n_actions.max()),
        "rewards": settings.reward,
        "starts_after_step": reached,
        "steps": steps,
        "prompts_per_step": prompts * settings.gradient_accumulation_steps,
        "completions_per_step": per_step,
        "completions": completions,
        "max_new_tokens": completions * settings.max_completion_length,
        "checkpoints": len(range(settings.save_steps, settings.max_steps + 1, settings.save_steps)),
        **foresee(settings, **_tokens(settings)),
        "data_sha256": None if isinstance(chat, RawPrompts) else data_hash(table, settings),
    }


def _tokens(settings: TrainSettings) -> dict[str, int]:
    """The tokens of a micro-step and of a forward, if all is as long as it may be."""
    rows = settings.prompts_per_step * settings.num_generations
    read = settings.prompts_per_step if settings.share_prompts else rows
    tokens = read * settings.max_prompt_length + rows * settings.max_completion_length
    return {"tokens": tokens, "at_once": min(tokens, settings.tokens_per_forward or tokens)}
