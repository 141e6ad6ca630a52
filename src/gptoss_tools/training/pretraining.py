"""pretrain as one of the ways to train: plain text, a new model or one to go on with."""

from __future__ import annotations

import logging
from typing import Any

from peft import get_peft_model
from torch.nn import Embedding
from transformers import set_seed

from gptoss_tools.core.publish import is_complete, publish, temporary_name, write_text
from gptoss_tools.models.adapters import attach_adapter, lora_for, save_trained
from gptoss_tools.models.loading import load_model, quiet
from gptoss_tools.models.machine import resolve_device
from gptoss_tools.models.sampling import write_sample
from gptoss_tools.models.scratch import new_model
from gptoss_tools.settings import (
    NewModelSettings,
    PretrainSettings,
    RemoteSettings,
    RunSettings,
)
from gptoss_tools.training.method import ADAPTER_SHAPE, Method
from gptoss_tools.training.pretraining_output import SittingLog, describe_change, write_output
from gptoss_tools.training.pretraining_preparation import PretrainPrepared, plan, prepare
from gptoss_tools.training.pretraining_trainer import PretrainTrainer, make_arguments
from gptoss_tools.training.sitting import Sitting

GPT2_PROMPT = "QUESTION: "
_log = logging.getLogger(__name__)


def build(sitting: Sitting) -> PretrainTrainer:
    """Make or load the model and its trainer."""
    prepared, settings = sitting.prepared, sitting.settings
    assert isinstance(prepared, PretrainPrepared)
    if sitting.reached:
        _log.info("Resuming from step %d", sitting.reached)
    if prepared.is_main:
        facts = _hyperparameters(settings)
        sitting.callbacks.append(SittingLog(sitting.run, sitting.reached, facts, sitting.notice))
    model = _model(sitting, prepared, settings)
    return PretrainTrainer(
        model=model,
        args=make_arguments(settings, str(sitting.run.checkpoints_path), prepared.world_size),
        tokens=prepared.tokens,
        tokenizer=prepared.tokenizer,
        settings=settings,
        callbacks=sitting.callbacks,
        allow_changes=sitting.allow_changes,
    )


def _model(sitting: Sitting, prepared: PretrainPrepared, settings: PretrainSettings) -> Any:
    # Several threads of a CPU add the gradients of grouped experts' biases in any order.
    experts = "eager" if resolve_device(settings.device).type == "cpu" else "grouped_mm"
    if settings.from_ is None:
        config = prepared.model_config
        model = new_model(config, settings.seed, experts_implementation=experts)
        if settings.adapter != "none":
            return _adapt_new(sitting, model)
    else:
        model = load_model(
            prepared.model,
            dtype="float32" if settings.adapter == "none" else settings.dtype,
            experts=settings.experts,
            experts_implementation="auto" if settings.experts == "packed" else experts,
            device=settings.device,
            cache_dir=sitting.cache_dir,
        )
    set_seed(settings.seed)  # the adapter's first weights are drawn here
    return attach_adapter(model, settings)


def _adapt_new(sitting: Sitting, model: Any) -> Any:
    """Put LoRA on random weights: RUN/base keeps them, embeddings and head learn whole.

    Frozen random embeddings would be all that the model ever reads and writes.
    """
    base = sitting.run.path / "base"
    if sitting.prepared.is_main and not is_complete(base):
        temporary = temporary_name(base)
        with quiet():
            save_trained(model, temporary)
            sitting.prepared.tokenizer.save_pretrained(str(temporary))
        publish(temporary, base)
    model.name_or_path = str(base.resolve())
    set_seed(sitting.settings.seed)
    lora = lora_for(model, sitting.settings)
    head = model.get_output_embeddings()
    lora.modules_to_save = [
        name for name, part in model.named_modules() if isinstance(part, Embedding) or part is head
    ]
    return get_peft_model(model, lora)


def finish(sitting: Sitting, trainer: PretrainTrainer) -> None:
    """Let the model write, and say what the sitting did to its loss."""
    settings, run = sitting.settings, sitting.run
    if not sitting.prepared.is_main:
        return
    log = next(c for c in sitting.callbacks if isinstance(c, SittingLog))
    if trainer.last:
        log.tell(describe_change(trainer.first, trainer.last))
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    prompt = settings.sample_prompt
    if prompt is None:
        prompt = GPT2_PROMPT if settings.from_ and model.config.model_type == "gpt2" else ""
    new = settings.from_ is None
    sample = write_sample(
        model,
        sitting.prepared.tokenizer,
        prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        window=settings.block_size if new else model.config.max_position_embeddings,
        seed=settings.seed,
    )
    write_text(run.path / "sample.txt", sample + "\n")
    log.write("sample:", sample)
    if settings.enable_output_to_file:
        write_output(run, _hyperparameters(settings), sample)


def _hyperparameters(settings: PretrainSettings) -> dict[str, Any]:
    """What decides the result, unlike where and whether it runs."""
    elsewhere = {*RemoteSettings.model_fields, *RunSettings.model_fields}
    return settings.model_dump(mode="json", exclude=elsewhere)


# What the saved weights and the saved tokenizer decide: a run that goes on cannot change it.
SHAPE = ADAPTER_SHAPE | set(NewModelSettings.model_fields) | {"from_", "tokenizer", "vocab_size"}
METHOD = Method(
    "pretrain", "pretrain", PretrainSettings, prepare, build, plan, finish, SHAPE, lenient=True
)
