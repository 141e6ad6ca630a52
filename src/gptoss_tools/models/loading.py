"""Loading a base model, its tokenizer and an adapter: the one way in for every command.

What follows is about gpt-oss; of other families transformers chooses the code itself.

MXFP4 experts are dequantised, or stay packed (`experts`): `models.experts` says when they can.
Everything that can be refused is refused before a weight loads.

    setting               CPU           GPU, training    GPU, inference
    dtype auto            float32       bfloat16         bfloat16
    attention auto        eager         eager            flash (FA3) on compute capability 9.x
                                                         with `kernels` installed, else eager
    experts_implementation
      auto, dequantised   grouped_mm    grouped_mm       grouped_mm
      packed              our own       our own          transformers' kernels with `triton` and
                                                         `kernels` installed, else our own

gpt-oss has attention sinks: SDPA cannot express them, and the FA3 kernel that can has no backward
pass for them. grouped_mm and eager cost the same on a CPU, batched_mm 7 to 10 times as much.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GptOssConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import Mxfp4Config

from gptoss_tools.errors import ConfigError, DataError, MachineError, first_line
from gptoss_tools.models import bigram  # noqa: F401  # makes pretrain's own kind known
from gptoss_tools.models.experts import choose_experts, experts_under, why_not_packed
from gptoss_tools.models.machine import packed_support, resolve_device, weight_type
from gptoss_tools.models.mixlora import is_mixlora
from gptoss_tools.models.mixlora import load as load_mixlora
from gptoss_tools.models.names import base_of, resolve_model
from gptoss_tools.models.snapshot import checkpoint_folder

FLASH = "kernels-community/vllm-flash-attn3"
ATTENTION = (
    "eager",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
EXPERTS = ("grouped_mm", "batched_mm", "eager")
_ADAPTER_FILES = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
_TODAY = 'strftime_now("%Y-%m-%d")'


def read_config(name: str | Path) -> Any:
    """Config of a resolved model; MachineError if the Hub gives none, ConfigError for a broken one.

    Reading it fetches config.json alone. An unreachable Hub is noticed at once, not after
    huggingface_hub's half minute of retries.
    """
    if not Path(name).is_dir() and try_to_load_from_cache(str(name), "config.json") is None:
        _ask_hub(str(name))
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise ConfigError(f"{name}/config.json cannot be read: {first_line(error)}") from error
        raise _unreachable(str(name), error) from error


def context_of(config: Any) -> int | None:
    """How many tokens a model reads and writes in all, None where its config sets no end."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _ask_hub(name: str) -> None:
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # whichever HTTP library is installed has its own classes
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> MachineError:
    return MachineError(
        f"model {name} is no folder here and the Hub did not give it: {first_line(error)}",
        hint="check the name and the network, log in for gated models, name a folder, or use tiny",
    )


def load_model(
    name: str | Path,
    *,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    experts_implementation: str = "auto",
    device: str = "auto",
    experts: str = "dequantized",
    for_training: bool = True,
    cache_dir: Path | None = None,
) -> PreTrainedModel:
    """Load a base model onto one device, in eval mode; the table above says what `auto` means.

    `experts`: `packed`, `dequantized`, or `auto`, by the memory there is. Raises MachineError
    where memory, GPU or network do not suffice, ConfigError for wrong settings, DataError if the
    checkpoint lacks a tensor (transformers would fill it with random numbers and go on).
    """
    target = resolve_device(device)
    weights = weight_type(dtype, target)
    if experts_implementation not in ("auto", *EXPERTS):
        raise ConfigError(
            f"experts_implementation {experts_implementation!r} is unknown",
            hint="use auto, " + ", ".join(EXPERTS),
        )
    path = resolve_model(name, cache_dir=cache_dir)
    config = read_config(path)
    is_gpt_oss = isinstance(config, GptOssConfig)
    packed = False
    if is_gpt_oss or experts == "packed":
        why = why_not_packed(config, weights, experts_implementation)
        choice = choose_experts(
            experts, config, target, weights, obstacle=why, for_training=for_training
        )
        packed = choice.held == "packed"
    if packed and (for_training or packed_support(target) is not None):
        from gptoss_tools.models.packed import load_packed  # which reads models as this file does

        folder = checkpoint_folder(path, cache_dir=cache_dir)
        attention = choose_attention(attn_implementation, target, for_training)
        return load_packed(folder, dtype=weights, device=target, attn_implementation=attention)
    options: dict[str, Any] = {"dtype": weights, "device_map": {"": target}}
    if is_gpt_oss:
        attention = choose_attention(attn_implementation, target, for_training)
        options["attn_implementation"] = attention
    elif attn_implementation != "auto":
        options["attn_implementation"] = attn_implementation
    if is_gpt_oss and getattr(config, "quantization_config", None) is not None:
        options["quantization_config"] = Mxfp4Config(dequantize=not packed)
    if is_gpt_oss and not packed:
        chosen = "grouped_mm" if experts_implementation == "auto" else experts_implementation
        options["experts_implementation"] = chosen
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, **options
            )
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if not Path(path).is_dir():
            raise _unreachable(path, error) from error
        # transformers' RuntimeErrors point to a report that is never shown.
        unfit = "its tensors are not those that config.json asks for"
        reason = unfit if isinstance(error, RuntimeError) else first_line(error)
        raise DataError(
            f"model {path} cannot be loaded: {reason}", hint="fetch or copy it again, whole"
        ) from error
    model, report = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(key) for key in report[problem]):
            raise DataError(f"checkpoint {path} lacks {names[0]} ({len(names)} tensors in all)")
    return model


def choose_attention(attn_implementation: str, device: torch.device, for_training: bool) -> str:
    """Resolve `auto`; refuse SDPA, which would drop gpt-oss's attention sinks."""
    if attn_implementation == "sdpa":
        raise ConfigError("attn_implementation sdpa cannot express gpt-oss's sinks", hint="eager")
    if attn_implementation == "flex_attention" and device.type != "cuda":
        raise ConfigError(
            f"attn_implementation flex_attention cannot express gpt-oss's sinks on {device.type}",
            hint="--attn-implementation eager",
        )
    if attn_implementation != "auto":
        # An address like owner/kernel is fetched from the Hub by transformers.
        if attn_implementation not in ATTENTION and "/" not in attn_implementation:
            raise ConfigError(
                f"attn_implementation {attn_implementation!r} is unknown",
                hint=f"use auto, {', '.join(ATTENTION)}, or a kernel's address owner/name",
            )
        return attn_implementation
    if for_training or device.type != "cuda" or importlib.util.find_spec("kernels") is None:
        return "eager"
    return FLASH if torch.cuda.get_device_capability(device)[0] == 9 else "eager"


def load_tokenizer(
    name: str | Path,
    *,
    date: str | None = None,
    cache_dir: Path | None = None,
) -> PreTrainedTokenizerFast:
    """Load the tokenizer, padding left, its template pinned to `date` (YYYY-MM-DD) if one is given.

    gpt-oss's template prints today's date, so prompts would otherwise change overnight.
    """
    path = resolve_model(name, cache_dir=cache_dir)
    read_config(path)  # the same clear refusals as for the model
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # a damaged file raises whatever its content happens to mean
        if not Path(path).is_dir():
            raise _unreachable(path, error) from error
        raise DataError(
            f"{path} holds no tokenizer that can be loaded",
            hint="copy tokenizer.json and tokenizer_config.json of the model there, whole",
        ) from error
    tokenizer.padding_side = "left"
    if date is not None and tokenizer.chat_template:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
            raise ConfigError(f"date {date!r} is not of the form YYYY-MM-DD")
        tokenizer.chat_template = tokenizer.chat_template.replace(_TODAY, f'"{date}"')
    return tokenizer


def load_with_adapter(
    base: str | Path | None,
    adapter: str | Path,
    *,
    trainable: bool = False,
    load: Callable[..., PreTrainedModel] = load_model,
    **options: Any,
) -> PreTrainedModel | PeftModel:
    """Load `base` (None: the adapter's own) and put the adapter on it, unmerged.

    With stock PEFT, so the result is a PeftModel; a MixLoRA is put on the model itself.
    `load` gives the base and takes `options`, those of `load_model`; `for_training` follows
    `trainable` unless given.
    """
    named = base_of(adapter)
    options.setdefault("for_training", trainable)
    options["experts"] = experts_under(adapter, options.get("experts", "dequantized"))
    model = load(base or named, **options)
    if is_mixlora(adapter):
        load_mixlora(model, adapter, trainable=trainable)
        return model
    if not any((Path(adapter) / name).is_file() for name in _ADAPTER_FILES):
        raise DataError(f"adapter {adapter} holds no {_ADAPTER_FILES[0]}", hint="copy it again")
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            loaded = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
        reason = _misfit(loaded, adapter)
        cause = None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged config raises whatever its values happen to mean
        reason, cause = first_line(error), error
    if reason:
        raise DataError(
            f"adapter {adapter} cannot be put on {base or named}: {reason}",
            hint="is it whole, and was it trained on this base model?",
        ) from cause
    return loaded


def _misfit(model: PeftModel, adapter: str | Path) -> str:
    """What PEFT lets pass: tensors that found no place or are lacking, and what is no number."""
    wanted: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, tensor in wanted.items():
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} holds NaN or infinity"
    path = Path(adapter) / _ADAPTER_FILES[0]
    if not path.is_file():  # a pickle, whose names are not to be had without its tensors
        return ""
    with safe_open(path, framework="pt") as file:
        held = set(file.keys())
    if lacking := sorted(wanted.keys() - held):
        return f"it lacks {lacking[0]}"
    foreign = sorted(name for name in held - wanted.keys() if "lora_" in name)
    return f"the model has no place for {foreign[0]}" if foreign else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off stderr; errors are raised, not logged."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
