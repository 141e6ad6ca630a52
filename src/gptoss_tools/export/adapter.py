"""What a PEFT LoRA folder changes in a base checkpoint, tensor by tensor, from the files alone.

Follows PEFT 0.21: scale alpha / r or alpha / sqrt(r), patterns per module, DoRA, LoRA biases,
trained biases and `modules_to_save`. What cannot be merged exactly is refused with the reason, and
every tensor of the adapter must find its place: nothing is dropped in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.export.safetensors_io import Checkpoint, TensorRef, read_header

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
_CHUNK = 1 << 24  # values per piece: one attention matrix whole, 64 MB in float32
_EXPERT_HINT = (
    "serve the adapter unmerged on its base, or train with `lora_target_modules` all-linear "
    "(attention only), which merges exactly up to bfloat16 rounding"
)


@dataclass(frozen=True)
class Change:
    """How one base tensor changes: new values first, then a LoRA product or a LoRA bias on them.

    Shapes: base and `new` [out, in] or [out], A [r, in], B [out, r], magnitude [out], plus [out].
    """

    base: TensorRef
    a: TensorRef | None = None
    b: TensorRef | None = None
    scale: float = 1.0
    magnitude: TensorRef | None = None
    plus: TensorRef | None = None
    new: TensorRef | None = None

    @property
    def kind(self) -> str:
        """lora, dora, bias or replaced, for tables."""
        if self.a is not None:
            return "dora" if self.magnitude is not None else "lora"
        return "bias" if self.plus is not None else "replaced"

    def merged(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield (first row, stored rows, merged float32 rows), about 64 MB of float32 at a time."""
        rows = self.base.shape[0]
        step = max(1, _CHUNK // max(1, math.prod(self.base.shape[1:])))
        a = self.a.read().float() if self.a is not None else None
        for first in range(0, rows, step):
            stored = self.base.read(first, first + step)
            start = stored if self.new is None else self.new.read(first, first + step)
            merged = start.to(torch.float32, copy=True)
            if a is not None and self.b is not None:
                merged += (self.b.read(first, first + step).float() @ a) * self.scale
            if self.plus is not None:
                merged += self.plus.read(first, first + step).float() * self.scale
            if self.magnitude is not None:
                norm = torch.linalg.vector_norm(merged, dim=1)
                factor = self.magnitude.read(first, first + step).float() / norm
                merged *= factor[:, None]
            yield first, stored, merged


def read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises DataError where it is missing or not JSON."""
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {CONFIG}, so it is no adapter",
            hint="name a run folder or the adapter folder in it",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} is not a JSON object")
    return config


def read_changes(folder: Path, base: Checkpoint) -> list[Change]:
    """Match every tensor of the adapter with the base tensor that it changes, in file order.

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
    for name, ref in read_header(path).items():
        stem = name.removeprefix(_PREFIX)
        if ".mlp.experts." in f".{stem}":
            raise _expert_error(folder, name)
        match = _PARTS.fullmatch(stem.removesuffix(".weight")) or _PARTS.fullmatch(stem)
        _check_finite(ref)
        if match:
            modules.setdefault(match[1], {})[match[2]] = ref
        elif "lora_" in stem or not name.startswith(_PREFIX):
            raise DataError(f"{path} holds {name}, which this version cannot merge")
        else:
            news[stem] = ref
    changes: list[Change] = []
    for module, parts in modules.items():
        changes += _lora(module, parts, news, config, base, path)
    for stem, ref in news.items():
        target = _base_tensor(stem.replace(".base_layer.", "."), ref, base)
        _same_shape(ref, target.shape, f"the base's {target.name}")
        changes.append(Change(target, new=ref))
    if not changes:
        raise DataError(f"{path} holds no tensors")
    twice = {c.base.name for c in changes}
    if len(twice) != len(changes):
        raise DataError(f"{path} changes a tensor in two ways, by LoRA and by new values")
    return sorted(changes, key=lambda change: (change.base.path, change.base.offset))


def scale_of(module: str, rank: int, config: dict[str, Any]) -> float:
    """The factor of B @ A: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
    alpha = _pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name, from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


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
    rank = _pattern(config.get("rank_pattern") or {}, module, config.get("r", 8))
    out, inputs = (*target.shape, 0, 0)[:2]
    _same_shape(a, (rank, inputs), f"rank {rank} and the base's {target.name} {target.shape}")
    _same_shape(b, (out, rank), f"rank {rank} and the base's {target.name} {target.shape}")
    magnitude, bias = parts.get("lora_magnitude_vector"), parts.get("lora_B.bias")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise DataError(f"{path} and {CONFIG} disagree on DoRA at {module}")
    if magnitude is not None:
        _same_shape(magnitude, (out,), f"the rows of {target.name}")
    scale = scale_of(module, rank, config)
    new = _take(news, f"{module}.base_layer.weight", target)
    yield Change(target, a=a, b=b, scale=scale, magnitude=magnitude, new=new)
    if bias is not None:
        target = _base_tensor(f"{module}.bias", bias, base)
        _same_shape(bias, target.shape, f"the base's {target.name}")
        new = _take(news, f"{module}.base_layer.bias", target)
        yield Change(target, plus=bias, scale=scale, new=new)


def _take(news: dict[str, TensorRef], name: str, target: TensorRef) -> TensorRef | None:
    ref = news.pop(name, None)
    if ref is not None:
        _same_shape(ref, target.shape, f"the base's {target.name}")
    return ref


def _refuse(config: dict[str, Any], folder: Path) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise ConfigError(f"{folder} is a {kind} adapter; only LoRA can be merged")
    if config.get("target_parameters"):
        raise _expert_error(folder, str(config["target_parameters"]))
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise ConfigError(f"{folder} cannot be merged: {key} is set, and {reason}")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ConfigError(
            f"{folder} cannot be merged: init_lora_weights={start!r} changed the base weights",
            hint="save it with PEFT's path_initial_model_for_weight_conversion first",
        )


def _expert_error(folder: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{folder} adapts the experts ({what}), and four-bit experts cannot hold it: a step of "
        "MXFP4 is larger than such a change, so merging would lose it or drown it in rounding",
        hint=_EXPERT_HINT,
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


def _same_shape(ref: TensorRef, shape: tuple[int, ...], what: str) -> None:
    if ref.shape != shape:
        raise DataError(
            f"{ref.path}: {ref.name} has shape {ref.shape}, but {what} needs {shape}",
            hint="is this the base that the adapter was trained on?",
        )


def _check_finite(ref: TensorRef) -> None:
    step = max(1, _CHUNK // max(1, math.prod(ref.shape[1:])))
    for first in range(0, ref.shape[0] if ref.shape else 1, step):
        if not bool(torch.isfinite(ref.read(first, first + step)).all()):
            raise DataError(
                f"{ref.path}: {ref.name} holds NaN or infinity", hint="use an earlier checkpoint"
            )
