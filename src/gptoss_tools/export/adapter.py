"""What a PEFT LoRA folder changes in a base checkpoint, tensor by tensor, from the files alone.

Follows PEFT 0.21: scale alpha / r or alpha / sqrt(r), patterns per module, DoRA, LoRA biases,
trained biases and `modules_to_save`. What cannot be merged exactly is refused with the reason, and
every tensor of the adapter must find its place: nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.export.changes import Change, check_finite, rank_of, same_shape, scale_of
from gptoss_tools.export.experts import ExpertChange, expert_changes, is_expert
from gptoss_tools.export.safetensors_io import Checkpoint, TensorRef, read_header, read_object

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_PARTS = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector)")
_REFUSED = {
    "fan_in_fan_out": "it stores weights transposed, which gpt-oss's layers are not",
    "layer_replication": "it repeats layers, so the merged model has another shape",
    "use_qalora": "QALoRA pools the inputs, which no merged weight can do",
    "use_bdlora": "block-diagonal LoRA is not a single product of two matrices",
    "arrow_config": "Arrow routes between adapters by the input",
    "kasa_config": "KaSA changes the base weights themselves",
    "monteclora_config": "MonteCLoRA draws its weights at random",
    "alora_invocation_tokens": "aLoRA is active only after certain tokens",
    "trainable_token_indices": "trained token embeddings are not merged by this version",
    "megatron_config": "Megatron's parallel layers are not gpt-oss's",
}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)


@dataclass(frozen=True)
class Changes:
    """Everything an adapter changes, each list in the base's file order."""

    plain: tuple[Change, ...]
    experts: tuple[ExpertChange, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises DataError where it is missing or not JSON."""
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {CONFIG}, so it is no adapter",
            hint="name a run folder or the adapter folder in it",
        )
    return read_object(path)


def read_adapter(folder: Path, base: Checkpoint) -> Changes:
    """Match every tensor of the adapter with the base tensor that it changes.

    Raises ConfigError for kinds of adapter that cannot be merged, DataError where adapter and base
    do not belong together or the adapter holds a tensor that this code does not know.
    """
    config = read_config(folder)
    _refuse(config, folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise DataError(f"{folder} holds no {WEIGHTS}", hint="save the adapter as safetensors")
    modules: dict[str, dict[str, TensorRef]] = {}
    news: dict[str, TensorRef] = {}
    experts: dict[str, TensorRef] = {}
    for name, ref in read_header(path).items():
        stem = name.removeprefix(_PREFIX)
        match = _PARTS.fullmatch(stem.removesuffix(".weight")) or _PARTS.fullmatch(stem)
        check_finite(ref)
        if is_expert(stem):
            experts[stem] = ref
        elif match:
            modules.setdefault(match[1], {})[match[2]] = ref
        elif "lora_" in stem or not name.startswith(_PREFIX):
            raise DataError(f"{path} holds {name}, which this version cannot merge")
        else:
            news[stem] = ref
    changes: list[Change] = []
    for module, parts in modules.items():
        changes += _lora(module, parts, news, config, base, path)
    for stem, ref in news.items():
        target = _base_tensor(re.sub(r"(\.base_layer)+\.", ".", stem), ref, base)
        same_shape(ref, target.shape, f"the base's {target.name}")
        changes.append(Change(target, new=ref))
    if not changes and not experts:
        raise DataError(f"{path} holds no tensors")
    if len({change.base.name for change in changes}) != len(changes):
        raise DataError(f"{path} changes a tensor in two ways, by LoRA and by new values")
    changes.sort(key=lambda change: (change.base.path, change.base.offset))
    return Changes(tuple(changes), tuple(expert_changes(experts, config, base, path)))


def _lora(
    module: str,
    parts: dict[str, TensorRef],
    news: dict[str, TensorRef],
    config: dict[str, Any],
    base: Checkpoint,
    path: Path,
) -> Iterator[Change]:
    """Changes of one module; takes from `news` what PEFT saved of the layer below its LoRA."""
    a, b = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    if a is None or b is None:
        raise DataError(f"{path} lacks lora_{'A' if a is None else 'B'} of {module}")
    target = _base_tensor(f"{module}.weight", a, base)
    rank = rank_of(module, config)
    out, inputs = (*target.shape, 0, 0)[:2]
    same_shape(a, (rank, inputs), f"rank {rank} and the base's {target.name} {target.shape}")
    same_shape(b, (out, rank), f"rank {rank} and the base's {target.name} {target.shape}")
    magnitude, bias = parts.get("lora_magnitude_vector"), parts.get("lora_B.bias")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise DataError(f"{path} and {CONFIG} disagree on DoRA at {module}")
    if magnitude is not None:
        same_shape(magnitude, (out,), f"the rows of {target.name}")
    scale = scale_of(module, rank, config)
    new = _take(news, f"{module}.base_layer.weight", target)
    yield Change(target, a=a, b=b, scale=scale, magnitude=magnitude, new=new)
    if bias is not None:
        target = _base_tensor(f"{module}.bias", bias, base)
        same_shape(bias, target.shape, f"the base's {target.name}")
        new = _take(news, f"{module}.base_layer.bias", target)
        yield Change(target, plus=bias, scale=scale, new=new)


def _take(news: dict[str, TensorRef], name: str, target: TensorRef) -> TensorRef | None:
    ref = news.pop(name, None)
    if ref is not None:
        same_shape(ref, target.shape, f"the base's {target.name}")
    return ref


def _refuse(config: dict[str, Any], folder: Path) -> None:
    kind = str(config.get("peft_type"))
    if kind == "MIXLORA":
        raise ConfigError(
            f"{folder} is a MixLoRA: which of its experts act depends on the token, so no weights "
            "can hold it",
            hint=f"use it unmerged: gptoss generate {folder}",
        )
    if kind != "LORA":
        raise ConfigError(f"{folder} is a {kind} adapter; only LoRA can be merged")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise ConfigError(f"{folder} cannot be merged: {key} is set, and {reason}")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ConfigError(
            f"{folder} cannot be merged: init_lora_weights={start!r} changed the base weights",
            hint="save it with PEFT's path_initial_model_for_weight_conversion first",
        )


def _base_tensor(name: str, ref: TensorRef, base: Checkpoint) -> TensorRef:
    target = base.tensors.get(name)
    if target is None:
        packed = any(part in base.tensors for part in mxfp4.packed_names(name))
        reason = "is packed in MXFP4" if packed else "does not exist"
        raise DataError(
            f"{ref.path} holds {ref.name}, but {name} {reason} in {base.folder}",
            hint="is this the base that the adapter was trained on?",
        )
    if target.dtype is None:
        raise DataError(f"{name} in {target.path} is {target.kind}, which cannot be merged into")
    return target
