"""Everything between pretrain's settings and the first weight: texts, tokenizer, tokens, sizes.

`prepare` runs on every rank, refuses what can be refused and writes nothing. `plan` says what a run
would do.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants as hub_constants
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from gptoss_tools.core.claims import next_free
from gptoss_tools.core.runs import Run
from gptoss_tools.data.text import Corpus, read_corpus
from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.models.experts import pin_experts
from gptoss_tools.models.loading import load_tokenizer, quiet, read_config
from gptoss_tools.models.machine import GB, available_bytes, resolve_device
from gptoss_tools.models.names import TINY, resolve_model
from gptoss_tools.models.scratch import count_parameters, new_config, training_bytes
from gptoss_tools.models.snapshot import fingerprint
from gptoss_tools.models.text_tokenizers import encode, new_tokenizer, unknown_count
from gptoss_tools.settings import PretrainSettings
from gptoss_tools.training.prepared import Prepared
from gptoss_tools.training.pretraining_data import Tokens, split
from gptoss_tools.training.pretraining_trainer import make_arguments
from gptoss_tools.training.ranks import join
from gptoss_tools.training.trackers import require_tracker


@dataclass(frozen=True, kw_only=True)
class PretrainPrepared(Prepared):
    """And the tokens of both parts, with the config of the model that is to learn them."""

    tokens: Tokens
    model_config: PreTrainedConfig

    def facts(self) -> dict[str, Any]:
        """How many tokens there are."""
        counts = {"train": len(self.tokens.train), "validation": len(self.tokens.validation)}
        return {"tokens": counts, "vocabulary": len(self.tokenizer)}


def prepare(
    settings: PretrainSettings,
    *,
    cache_dir: Path | None = None,
    home: str | None = None,
    checkpoint: Path | None = None,
) -> PretrainPrepared:
    """Check settings, machine and texts, and turn the texts into tokens; write nothing.

    With a `checkpoint` tokenizer and model are those in it: a tokenizer made anew from other text
    would give the same numbers to other characters. Raises ConfigError, DataError or MachineError.
    """
    hub_constants.HF_HUB_DISABLE_TELEMETRY = True
    settings = settings.resolved()
    state = join(settings.device)
    require_tracker(settings.report_to)
    make_arguments(settings, "unused", state.num_processes)
    corpus = _corpus(settings, home)
    model = base = None
    if settings.from_ is not None and checkpoint is not None and settings.adapter == "none":
        model = str(checkpoint)  # all of it has learned: the base no longer matters
    elif settings.from_ is not None:
        model = _resolved(settings.from_, home, cache_dir)
        base = fingerprint(model)
    tokenizer = _tokenizer(settings, corpus, model, home, cache_dir, checkpoint)
    ids = encode(tokenizer, corpus.texts)
    tokens = split(ids, settings.validation_share, settings.block_size, str(corpus))
    config = _config(settings, model, tokenizer)
    _check_model(settings, config, int(ids.max()))
    notes = [
        f"{corpus}: {corpus.characters:,} characters, {len(tokens.train):,} tokens to learn, "
        f"{len(tokens.validation):,} to measure, {len(tokenizer):,} different ones"
    ]
    if strange := unknown_count(tokenizer, ids):
        notes.append(f"{strange:,} of {len(ids):,} tokens are unknown to the tokenizer")
    device = resolve_device(settings.device)
    if settings.from_ is not None or settings.experts == "packed":
        seen = (settings.windows_per_step or 1) * settings.block_size
        settings, more = pin_experts(settings, config, device, tokens=seen)
        notes += more
    need, free = _bytes(settings, config), available_bytes(device)
    if need > free and settings.experts != "packed":  # for which the check is made already
        raise MachineError(
            f"training this model needs about {need / GB:.1f} GB on {settings.device}, which has "
            f"{free / GB:.1f} GB free",
            hint="lower windows_per_step (raise gradient_accumulation_steps), or the sizes",
        )
    return PretrainPrepared(
        settings=settings,
        rows=len(corpus.texts),
        data_hash=corpus.sha256,
        tokenizer=tokenizer,
        model=model or f"new {settings.model_type}",
        base_hash=base,
        world_size=state.num_processes,
        is_main=state.is_main_process,
        notes=notes,
        tokens=tokens,
        model_config=config,
    )


def plan(settings: PretrainSettings, run: Run | None, reached: int) -> dict[str, Any]:
    """Say what training would do, `reached` steps into `run`; load and write nothing.

    What only a model of the Hub, or the tiny one, could tell is None.
    """
    settings = settings.resolved()
    require_tracker(settings.report_to)
    point = run.checkpoint() if run else None
    home = run.config.get("cwd") if run else None
    corpus = _corpus(settings, home)
    facts: dict[str, Any] = dict.fromkeys(
        [
            "parameters",
            "vocabulary",
            "tokens_to_learn",
            "tokens_to_measure",
            "epochs",
            "memory_bytes",
        ]
    )
    steps = max(0, settings.max_steps - reached)
    per_step = (
        (settings.windows_per_step or 1)
        * settings.gradient_accumulation_steps
        * settings.block_size
    )
    names = [settings.from_ or ".", settings.tokenizer]
    if not any(name == TINY or ("/" in name and not Path(name).is_dir()) for name in names):
        model = _resolved(settings.from_, home, None) if settings.from_ else None
        tokenizer = _tokenizer(settings, corpus, model, home, None, point.path if point else None)
        ids = encode(tokenizer, corpus.texts)
        tokens = split(ids, settings.validation_share, settings.block_size, str(corpus))
        config = _config(settings, model, tokenizer)
        facts = {
            "parameters": count_parameters(config),
            "vocabulary": len(tokenizer),
            "tokens_to_learn": len(tokens.train),
            "tokens_to_measure": len(tokens.validation),
            "epochs": steps * per_step / len(tokens.train),
            "memory_bytes": _bytes(settings, config),
        }
    return {
        "run": str(run.path if run else Path(settings.output_dir or next_free(prefix="pretrain"))),
        "model": settings.from_ or f"new {settings.model_type}",
        "texts": len(corpus.texts),
        "characters": corpus.characters,
        "starts_after_step": reached,
        "steps": steps,
        "tokens_per_step": per_step,
        **facts,
        "checkpoints": len(range(settings.save_steps, settings.max_steps + 1, settings.save_steps)),
        "data_sha256": corpus.sha256,
    }


def _is_here(name: str | None) -> bool:
    """Whether this needs neither the Hub nor the tiny model to be built."""
    return name is None or Path(name).is_dir() or ("/" not in name and name != TINY)


def _corpus(settings: PretrainSettings, home: str | None) -> Corpus:
    """Read the texts; paths that are not here but where the run began are taken from there."""
    paths = settings.data
    if home is not None:
        paths = [p if glob.glob(p) else str(Path(home) / p) for p in paths]
    return read_corpus(
        paths,
        text_column=settings.text_column,
        encoding=settings.encoding,
        delimiter=settings.delimiter,
    )


def _resolved(name: str, home: str | None, cache_dir: Path | None) -> str:
    if home and not Path(name).is_dir() and (Path(home) / name).is_dir():
        name = str(Path(home) / name)
    path = resolve_model(name, cache_dir=cache_dir)
    # It ends up in an adapter, read from anywhere.
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _tokenizer(
    settings: PretrainSettings,
    corpus: Corpus,
    model: str | None,
    home: str | None,
    cache_dir: Path | None,
    checkpoint: Path | None,
) -> PreTrainedTokenizerBase:
    if checkpoint is not None:
        with quiet():
            return AutoTokenizer.from_pretrained(checkpoint)
    if settings.tokenizer in ("character", "bpe"):
        return new_tokenizer(settings.tokenizer, corpus.texts, settings.vocab_size)
    name = model if settings.tokenizer == "model" else _resolved(settings.tokenizer, home, None)
    return load_tokenizer(str(name), cache_dir=cache_dir)


def _config(
    settings: PretrainSettings, model: str | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    if model is not None:
        return read_config(model)
    config = new_config(settings, tokenizer, settings.router_aux_loss_coef)
    if settings.adapter != "none":
        config.tie_word_embeddings = False  # embeddings and head learn, each by itself
    return config


def _check_model(settings: PretrainSettings, config: Any, highest: int) -> None:
    """Raise ConfigError where the model has no place for a window or no row for a token."""
    places = getattr(config, "max_position_embeddings", settings.block_size)
    if settings.block_size > places:
        raise ConfigError(
            f"block_size is {settings.block_size}, and {settings.from_} reads {places} tokens",
            hint=f"--block-size {places}, or less",
        )
    if highest >= config.vocab_size:
        raise ConfigError(
            f"{settings.from_} has {config.vocab_size} tokens, and its tokenizer gives {highest}",
            hint="name a model whose tokenizer belongs to it",
        )


def _bytes(settings: PretrainSettings, config: PreTrainedConfig) -> int:
    trainable = None if settings.adapter == "none" else 0
    rows = settings.windows_per_step or 1
    return training_bytes(config, rows=rows, tokens=settings.block_size, trainable=trainable)
