"""TrainSettings -> GRPOConfig, and a decision table -> the dataset TRL reads.

Every value that TRL would fill in with a surprise is set here: its MoE loss (on, with gpt-oss's own
weight of 0.9), mixed precision (on, whatever the device), its shuffling and its completion tables.
Leaves out the model and the folder.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import fields
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig

from gptoss_tools.core.stream import value_columns
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.data.tables import is_missing
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.models.machine import resolve_device, weight_type
from gptoss_tools.rewards.combined import needed, reads_only_values
from gptoss_tools.settings import TrainSettings

# Settings of ours under TRL's own name, copied as they are.
SAME_NAME = [
    "num_generations",
    "num_iterations",
    "gradient_accumulation_steps",
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "loss_type",
    "scale_rewards",
    "beta",
    "epsilon",
    "gradient_checkpointing",
    "seed",
    "save_steps",
    "logging_steps",
    "run_name",
]

# What [trainer] may not touch: the batch layout, the data order and what makes a resume exact.
OURS = frozenset(
    [
        "output_dir",
        "per_device_train_batch_size",
        "generation_batch_size",
        "remove_unused_columns",
        "shuffle_dataset",
        "dataloader_drop_last",
        "ignore_data_skip",
        "num_train_epochs",
        "model_init_kwargs",
        "mask_truncated_completions",
        "save_strategy",
        "save_only_model",
        "load_best_model_at_end",
        "eval_strategy",
        "do_eval",
        "auto_find_batch_size",
        "push_to_hub",
        "resume_from_checkpoint",
        "use_cpu",
        "bf16",
        "fp16",
        "log_completions",
        "chat_template_kwargs",
    ]
)


def make_config(
    settings: TrainSettings, output_dir: str, world_size: int = 1, rows: int | None = None
) -> GRPOConfig:
    """The GRPOConfig of a run whose checkpoints go to `output_dir`; `rows` clips prompts_per_step.

    Raises ConfigError where the global micro-batch of prompts_per_step * num_generations rows does
    not divide over the processes, and for what [trainer] may not or cannot hold.
    """
    prompts = min(settings.prompts_per_step, rows or settings.prompts_per_step)
    batch = prompts * settings.num_generations
    if batch % world_size:
        raise ConfigError(
            f"a micro-step of {prompts} x {settings.num_generations} completions does not divide "
            f"over {world_size} processes",
            hint="make prompts_per_step * num_generations a multiple of the number of processes",
        )
    _check_extra(settings.trainer)
    device = resolve_device(settings.device)
    dtype = weight_type(settings.dtype, device)
    on_cpu = device.type == "cpu"
    values: dict[str, Any] = {name: getattr(settings, name) for name in SAME_NAME}
    values |= {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": batch // world_size,
        "steps_per_generation": settings.steps_per_generation,  # None: gradient accumulation
        "report_to": [] if settings.report_to == "none" else [settings.report_to],
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16 and not on_cpu,
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and world_size > 1 else None,
        # Every adapter weight takes part in every forward pass; the search costs time and memory.
        "ddp_find_unused_parameters": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "router_aux_loss_coef": 0.0,
        "shuffle_dataset": False,  # StepStream decides the order
        "remove_unused_columns": False,
        "dataloader_pin_memory": not on_cpu,
        "log_completions": False,  # ours go to completions.csv
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_total_limit": None,  # TRL would look for checkpoint-N, ours are step-N
    }
    try:
        config = GRPOConfig(**{**values, **settings.trainer})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses these settings: {error}") from error
    _check_masking(config)
    if settings.zero_signal != "keep":
        _check_silent(config)
    return config


def build_dataset(
    table: DecisionTable, tokenizer: PreTrainedTokenizerBase, settings: TrainSettings
) -> tuple[datasets.Dataset, int]:
    """The table as a Dataset, and how many rows were dropped for their long prompts.

    Columns: row (0-based table row), prompt (Harmony text), n_actions and, where the table has
    them, reward_action_k, q_action_k, phase (text) and actions (the row's names, empty where it is
    numbered). Rewards other than `decision` get all else that a row holds, as JSON text in cells.
    Raises DataError naming the row of a prompt of more than `max_prompt_length` tokens unless
    `long_prompts` is "drop", if no row is left, and for a table without the rewards of actions
    where these are needed.
    """
    if table.rewards is None and needed(settings)["values"]:
        raise DataError(
            f"{table.where(0)}: there are no reward_action columns", hint="run gptoss calc-reward"
        )
    lengths = token_counts(tokenizer, table.prompts)
    keep = [i for i, length in enumerate(lengths) if length <= settings.max_prompt_length]
    dropped = len(lengths) - len(keep)
    if dropped and settings.long_prompts == "error":
        first = next(i for i, n in enumerate(lengths) if n > settings.max_prompt_length)
        more = f" ({dropped} rows in all)" if dropped > 1 else ""
        raise DataError(
            f"{table.where(first)}: the prompt has {lengths[first]} tokens, "
            f"max_prompt_length is {settings.max_prompt_length}{more}",
            hint=f"--max-prompt-length {max(lengths)} takes them all; --long-prompts drop leaves "
            "such rows out",
        )
    if not keep:
        raise DataError(
            "no row is left to train on: "
            + ("all prompts are too long" if dropped else "the table is empty"),
            hint=f"the shortest has {min(lengths)} tokens" if dropped else None,
        )
    columns: dict[str, list[Any]] = {
        "row": keep,
        "prompt": [table.prompts[i] for i in keep],
        "n_actions": [int(table.n_actions[i]) for i in keep],
    }
    if table.rewards is not None:
        columns |= value_columns([table.rewards[i] for i in keep], "reward")
    if table.q is not None:
        columns |= value_columns([table.q[i] for i in keep], "q")
    if "phase" in table.columns:
        cells = table.columns["phase"].tolist()
        columns["phase"] = [None if is_missing(cells[i]) else str(cells[i]) for i in keep]
    if table.names is not None:
        columns["actions"] = [table.names[i] for i in keep]
    if not reads_only_values(settings):
        columns["cells"] = [json.dumps(table.cells(i), ensure_ascii=False) for i in keep]
    return datasets.Dataset.from_dict(columns, features=_features(columns)), dropped


def phases_of(dataset: datasets.Dataset) -> list[str]:
    """The phases that the rows of a dataset belong to, in the order of the alphabet."""
    if "phase" not in dataset.column_names:
        return []
    return sorted(phase for phase in set(dataset["phase"]) if phase is not None)


def token_counts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[int]:
    """How many tokens each prompt has, without ever holding the ids of all: 15 times the text."""
    some = (prompts[begin : begin + 1000] for begin in range(0, len(prompts), 1000))
    return [len(ids) for part in some for ids in tokenize(tokenizer, part)]


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Harmony text to ids: its special tokens are read as such and no other is added."""
    return list(tokenizer(text=prompts, add_special_tokens=False)["input_ids"])


def _features(columns: dict[str, list[Any]]) -> datasets.Features:
    # Declared, because a column of nothing but None would otherwise get the type null.
    whole, text, number = (datasets.Value(kind) for kind in ("int64", "string", "float64"))
    kinds: dict[str, Any] = {"row": whole, "prompt": text, "n_actions": whole}
    kinds |= {"phase": text, "actions": datasets.List(text), "cells": text}
    return datasets.Features({name: kinds.get(name, number) for name in columns})


def _check_extra(extra: dict[str, Any]) -> None:
    known = {field.name for field in fields(GRPOConfig) if field.init}
    for name in extra:
        if name in OURS:
            raise ConfigError(f"[trainer] {name} is not free: the run's layout depends on it")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"[trainer] {name} is no argument of GRPOConfig",
                hint=f"did you mean {near[0]}?" if near else None,
            )


def _check_masking(config: GRPOConfig) -> None:
    """Refuse added loss terms where masking rescales the loss as a whole, and so them with it."""
    if config.loss_type in ("dapo", "cispo"):
        return
    for name in ("entropy_coef", "use_adaptive_entropy", "router_aux_loss_coef"):
        if getattr(config, name):
            raise ConfigError(
                f"[trainer] {name} cannot be combined with loss_type {config.loss_type}",
                hint="use loss_type dapo",
            )


def _check_silent(config: GRPOConfig) -> None:
    """Refuse what looks at every row's tokens where rows without a signal are left out."""
    own = {"entropy_coef": 0.0, "use_adaptive_entropy": False, "top_entropy_quantile": 1.0}
    for name, value in own.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"[trainer] {name} needs zero_signal keep: it counts the tokens of every row",
                hint="leave out one of the two",
            )
