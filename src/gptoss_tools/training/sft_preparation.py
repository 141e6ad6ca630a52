"""Everything before train-sft's first weight: the checks, the examples as tokens, the plan."""

from __future__ import annotations

import contextlib
import datetime
import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub_constants
from transformers import GptOssConfig, PreTrainedTokenizerFast

from gptoss_tools.chat.completions import HarmonyTokens
from gptoss_tools.core.claims import next_free
from gptoss_tools.core.runs import Run
from gptoss_tools.data.instructions import Instructions, load_instructions
from gptoss_tools.data.prompter import HarmonyPrompter, Prompter, choose_prompter
from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.models.chats import reads_harmony
from gptoss_tools.models.experts import pin_experts, whole_training
from gptoss_tools.models.loading import (
    choose_attention,
    load_tokenizer,
    read_config,
    resolve_model,
)
from gptoss_tools.models.machine import (
    available_bytes,
    published_config,
    resolve_device,
    weight_type,
)
from gptoss_tools.models.names import TINY
from gptoss_tools.models.snapshot import fingerprint
from gptoss_tools.settings.sft import SftSettings
from gptoss_tools.training.foreseen import foresee
from gptoss_tools.training.prepared import Prepared
from gptoss_tools.training.ranks import join
from gptoss_tools.training.sft_data import TokenRows, tokenize_examples
from gptoss_tools.training.sft_passes import steps_of
from gptoss_tools.training.sft_trainer import make_config, rows_per_step
from gptoss_tools.training.trackers import require_tracker

PREFIX = "sft"


@dataclass(frozen=True, kw_only=True)
class SftPrepared(Prepared):
    """And the examples as tokens, with the held-out ones where there are some."""

    data: TokenRows
    held_out: TokenRows | None = None

    def facts(self) -> dict[str, Any]:
        """How much is read and learned in one pass, and how many rows the loss is measured on."""
        learned = {"tokens": self.data.tokens, "learned_tokens": self.data.learned}
        held_out = None if self.held_out is None else {"rows": len(self.held_out)}
        return {"one_pass": learned, "eval_data": held_out}


def prepare(
    settings: SftSettings, *, cache_dir: Path | None = None, home: str | None = None
) -> SftPrepared:
    """Check settings, machine and data, and tokenise the examples; write nothing.

    `home` is where the run began: relative paths that are not here are looked for there. The
    settings come back with date, max_length and max_steps as they are used. Raises ConfigError,
    DataError or MachineError.
    """
    hub_constants.HF_HUB_DISABLE_TELEMETRY = True  # trl, datasets and transformers all look here
    state = join(settings.device)
    require_tracker(settings.report_to)
    model, config, tokenizer = _model(settings, home, cache_dir)
    settings, notes = _fit(settings, config)
    settings = _pinned(settings, config, notes)
    prompter = _prompter(settings, tokenizer, isinstance(config, GptOssConfig), home)
    rendered = isinstance(prompter, HarmonyPrompter)
    found = _read(settings, settings.data, home, settings.max_examples, rendered)
    data = _tokens(settings, found, prompter, tokenizer)
    _check_ids(data, config)
    if settings.max_steps is None:
        rows = rows_per_step(settings, state.num_processes)
        steps = steps_of(settings.num_train_epochs, len(data), rows)
        settings = settings.model_copy(update={"max_steps": steps})
    make_config(settings, "unused", state.num_processes)
    held_out = None
    if settings.eval_steps is not None:
        shown = _read(settings, settings.eval_data, home, None, rendered)
        held_out = _tokens(settings, shown, prompter, tokenizer)
        _check_ids(held_out, config)
        if shared := overlap(data, held_out):
            notes.append(f"{shared} of {len(held_out)} held-out examples are trained on as well")
    return SftPrepared(
        settings=settings,
        rows=len(found),
        dropped=data.dropped,
        data_hash=data.sha256,
        data=data,
        held_out=held_out,
        tokenizer=tokenizer,
        model=model,
        base_hash=fingerprint(model),
        world_size=state.num_processes,
        is_main=state.is_main_process,
        notes=[*notes, *_data_notes(data, len(found), tokenizer)],
    )


def plan(settings: SftSettings, run: Run | None, reached: int) -> dict[str, Any]:
    """Say what training would do, `reached` steps into `run`; load no weights and write nothing.

    Where the tokenizer is not here, tokens are None, and steps count long prompts too. The first
    example is shown as the model will see it; None for a Hub model other than gpt-oss. Bytes are
    those of `foresee`.
    """
    require_tracker(settings.report_to)
    home = run.config.get("cwd") if run else None
    there = settings.model_copy(update={"model": _found(settings.model, home)})
    rendered = settings.prompt_template in ("auto", "chat") and reads_harmony(settings.model)
    found = _read(settings, settings.data, home, settings.max_examples, rendered)
    data, pair = _foreseen(settings, found, home)
    rows = rows_per_step(settings, join(settings.device).num_processes)
    examples = len(data) if data else len(found)
    last = settings.max_steps or steps_of(settings.num_train_epochs, examples, rows)
    return {
        "run": str(run.path if run else Path(settings.output_dir or next_free(prefix=PREFIX))),
        "model": settings.model,
        "adapter": settings.adapter,
        "examples": len(found),
        "dropped": data.dropped if data else None,
        "answers_cut": data.cut if data else None,
        "tokens": data.tokens if data else None,
        "learned_tokens": data.learned if data else None,
        "longest": data.longest if data else None,
        "starts_after_step": reached,
        "steps": max(0, last - reached),
        "examples_per_step": rows,
        "passes": round(last * rows / examples, 3),
        "checkpoints": len(range(settings.save_steps, last + 1, settings.save_steps)),
        **foresee(there, tokens=_at_most(settings)),
        "first_prompt": pair[0],
        "first_answer": pair[1],
    }


def _foreseen(
    settings: SftSettings, found: Instructions, home: str | None
) -> tuple[TokenRows | None, tuple[str | None, str | None]]:
    """The examples as tokens, and the first one as text, as far as that is known from here."""
    first = found.examples[0]
    if settings.model != TINY:  # which is built when it is asked for
        with contextlib.suppress(MachineError):  # the Hub is out of reach
            _, config, tokenizer = _model(settings, home, None)
            settings = _pinned(settings, config, [])
            prompter = _prompter(settings, tokenizer, isinstance(config, GptOssConfig), home)
            return _tokens(settings, found, prompter, tokenizer), prompter.pair(first)
    known = settings.model == TINY or published_config(settings.model) is not None
    if not known or settings.prompt_template not in ("auto", "chat"):
        return None, (None, None)
    settings = settings.model_copy(update={"date": _date(settings)})
    return None, _prompter(settings, None, True, home).pair(first)


def _model(
    settings: SftSettings, home: str | None, cache_dir: Path | None
) -> tuple[str, Any, PreTrainedTokenizerFast]:
    """The base model's folder or Hub id, its config and its tokenizer."""
    model = resolve_model(_found(settings.model, home), cache_dir=cache_dir)
    if Path(model).is_dir():
        model = str(Path(model).resolve())  # it ends up in the adapter, read from anywhere
    config = read_config(model)
    return model, config, load_tokenizer(model)


def _fit(settings: SftSettings, config: Any) -> tuple[SftSettings, list[str]]:
    """Refuse what the machine cannot hold, decide how experts are held; say what it costs."""
    device = resolve_device(settings.device)
    dtype = weight_type(settings.dtype, device)
    if isinstance(config, GptOssConfig):
        choose_attention(settings.attn_implementation, device, True)
    settings, notes = pin_experts(settings, config, device, tokens=_at_most(settings))
    if settings.adapter != "none":
        return settings, notes
    if isinstance(config, GptOssConfig):
        need = whole_training(config, dtype)
        if need > (free := available_bytes(device)):
            raise MachineError(
                f"training all of this model needs about {need / 1e9:.1f} GB on {device}, which "
                f"has {free / 1e9:.1f} GB free",
                hint="--adapter lora trains a part of it",
            )
    if dtype == torch.float32:
        return settings, notes
    kind = str(dtype).removeprefix("torch.")
    return settings, [
        *notes,
        f"weights that learn in {kind} round small updates away: --dtype float32 keeps them",
    ]


def _at_most(settings: SftSettings) -> int:
    """The tokens of one micro-step, if every example is as long as it may be."""
    return settings.per_device_train_batch_size * settings.max_length


def _pinned(settings: SftSettings, config: Any, notes: list[str]) -> SftSettings:
    """Fix the date, so that prompts read the same tomorrow, and the length the model can read."""
    changes: dict[str, Any] = {"date": _date(settings)}
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    if room is not None and room < settings.max_length:
        changes["max_length"] = room
        notes.append(f"max_length is {room}: the model reads no more")
    return settings.model_copy(update=changes)


def _date(settings: SftSettings) -> str:
    return settings.date or datetime.date.today().isoformat()


def _found(path: str, home: str | None) -> str:
    """The path as it is, or where the run began if it is only there."""
    there = str(Path(home or ".") / path)
    return there if home and not glob.glob(path) and glob.glob(there) else path


def _prompter(
    settings: SftSettings, tokenizer: Any, is_gpt_oss: bool, home: str | None
) -> Prompter:
    harmony = is_gpt_oss
    if harmony and tokenizer is not None:
        try:
            HarmonyTokens.from_tokenizer(tokenizer)
        except ConfigError:  # a small gpt-oss of one's own, with a tokenizer of its own
            harmony = False
    name = settings.prompt_template
    return choose_prompter(
        _found(name, home) if name.endswith(".json") else name,
        tokenizer,
        harmony=harmony,
        date=settings.date or "",
        reasoning_effort=settings.reasoning_effort,
        model_identity=settings.model_identity,
    )


def _read(
    settings: SftSettings,
    paths: list[str],
    home: str | None,
    max_examples: int | None,
    rendered: bool,
) -> Instructions:
    """Read examples; of a conversation that is learned whole, all of it once."""
    return load_instructions(
        [_found(path, home) for path in paths],
        data_format=settings.data_format,
        split=settings.split,
        subset=settings.subset,
        revision=settings.revision,
        turns=settings.turns if settings.completion_only_loss else "last",
        max_examples=max_examples,
        seed=settings.seed,
        encoding=settings.encoding,
        delimiter=settings.delimiter,
        rendered=rendered,
        date=settings.date,
        reasoning_effort=settings.reasoning_effort,
        model_identity=settings.model_identity,
    )


def _tokens(
    settings: SftSettings, found: Instructions, prompter: Prompter, tokenizer: Any
) -> TokenRows:
    return tokenize_examples(
        found,
        prompter,
        tokenizer,
        max_length=settings.max_length,
        long_prompts=settings.long_prompts,
        completion_only_loss=settings.completion_only_loss,
    )


def _check_ids(data: TokenRows, config: Any) -> None:
    size = getattr(config.get_text_config(), "vocab_size", None)
    if size is not None and data.largest_id >= size:
        raise ConfigError(
            f"the tokenizer gives the token {data.largest_id}, and the model knows {size}",
            hint="use the tokenizer that belongs to the model",
        )


def _data_notes(data: TokenRows, rows: int, tokenizer: Any) -> list[str]:
    notes = []
    if data.dropped:
        notes.append(f"{data.dropped} of {rows} examples have long prompts and are left out")
    if data.cut:
        notes.append(f"{data.cut} answers end early: they are cut off at max_length")
    if tokenizer.eos_token_id is None:
        notes.append("the tokenizer has no token that ends a text: no answer will learn to stop")
    return notes


def overlap(data: TokenRows, held_out: TokenRows) -> int:
    """Return how many held-out examples are trained on as well."""

    def digests(rows: TokenRows) -> list[bytes]:
        return [hashlib.sha256(repr(ids).encode()).digest() for ids in rows.dataset["input_ids"]]

    known = set(digests(data))
    return sum(one in known for one in digests(held_out))
