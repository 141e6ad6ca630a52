"""The experts of a checkpoint, packed in MXFP4 or not, and LoRA on them.

A checkpoint keeps `gate_up_proj` and `down_proj` as blocks [E, out, in / 32, 16] and scales
[E, out, in / 32], or dequantised as the model's parameter [E, in, out]. PEFT (0.21, `ParamWrapper`)
adapts the parameter with A [E * r, in], expert by expert, and B [out, r * E], rank by rank. Where
both parameters are adapted their wrappers are nested, gate_up_proj innermost: its tensors are named
`experts.base_layer.lora_*`, those of down_proj `experts.lora_*`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.export.changes import CHUNK, rank_of, same_shape, scale_of
from gptoss_tools.export.safetensors_io import Checkpoint, TensorRef
from gptoss_tools.export.threads import one_thread

_PART = re.compile(r"(.+\.mlp\.experts)((?:\.base_layer)*)\.(lora_[AB])\.weight")


@dataclass(frozen=True)
class Experts:
    """One expert parameter of a checkpoint; `stored` is blocks and scales, or the parameter."""

    name: str
    stored: tuple[TensorRef, ...]

    @property
    def packed(self) -> bool:
        """Whether it is stored in MXFP4."""
        return len(self.stored) == 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, out, in): how the experts are worked on, one matrix as of a linear layer each."""
        first = self.stored[0].shape
        if self.packed:
            return first[0], first[1], first[2] * mxfp4.BLOCK
        return first[0], first[2], first[1]

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(ref.nbytes for ref in self.stored)

    def packed_bytes(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One expert's blocks [out, in / 32, 16] and scales [out, in / 32]."""
        blocks, scales = (ref.read(expert, expert + 1)[0] for ref in self.stored)
        return blocks, scales

    def read(self, expert: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """One expert's matrix [out, in], whole."""
        return torch.cat([values for _, values in self.pieces(expert, dtype)])

    def pieces(
        self, expert: int, dtype: torch.dtype = torch.float32
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """One expert's matrix [out, in], `CHUNK` values at a time: (rows, their values)."""
        _, out, inputs = self.shape
        step = max(1, CHUNK // inputs)
        ranges = [slice(first, min(first + step, out)) for first in range(0, out, step)]
        if self.packed:
            blocks, scales = self.packed_bytes(expert)
            for rows in ranges:
                yield rows, mxfp4.decode(blocks[rows], scales[rows], dtype)
        else:
            whole = self.stored[0].read(expert, expert + 1)[0].T.to(dtype)
            yield from ((rows, whole[rows]) for rows in ranges)


@dataclass(frozen=True)
class ExpertChange:
    """LoRA on one expert parameter: A [E * r, in], B [out, r * E]."""

    base: Experts
    a: TensorRef
    b: TensorRef
    scale: float
    kind = "experts"

    def merged(self) -> Iterator[tuple[int, slice, torch.Tensor, torch.Tensor]]:
        """Yield (expert, rows of its [out, in], stored rows, merged rows) in float32, in order.

        Torch keeps to one thread meanwhile, also in what the caller does with the rows.
        """
        count = self.base.shape[0]
        rank = self.a.shape[0] // count
        b_all = self.b.read().float()
        with one_thread():
            for expert in range(count):
                a = self.a.read(expert * rank, (expert + 1) * rank).float()
                b = b_all[:, expert::count].contiguous()
                for rows, stored in self.base.pieces(expert):
                    yield expert, rows, stored, stored + (b[rows] @ a) * self.scale


def experts_of(base: Checkpoint) -> dict[str, Experts]:
    """Every expert parameter by its model name. Raises DataError where a half of one is missing."""
    found = {}
    for name in dict.fromkeys(mxfp4.parameter_name(tensor) for tensor in base.tensors):
        if not mxfp4.is_packed(name):
            continue
        plain = base.tensors.get(name)
        refs = [base.tensors.get(part) for part in mxfp4.packed_names(name)]
        if plain is not None and refs == [None, None]:
            _check(plain.dtype is not None and len(plain.shape) == 3, plain, "[E, in, out]")
            found[name] = Experts(name, (plain,))
            continue
        blocks, scales = refs
        if blocks is None or scales is None or plain is not None:
            wrong = "is there twice" if plain is not None else "has blocks or scales, not both"
            raise DataError(f"{name} in {base.folder} {wrong}", hint="fetch the base again")
        _check(scales.kind == "U8" and len(scales.shape) == 3, scales, "[E, out, in / 32] of bytes")
        wanted = f"(*{scales.shape}, 16) of bytes"
        _check(blocks.kind == "U8" and blocks.shape == (*scales.shape, 16), blocks, wanted)
        found[name] = Experts(name, (blocks, scales))
    return found


def parameters_of(base: Checkpoint) -> int:
    """How many weights a checkpoint holds, packed ones counted one by one."""
    experts = experts_of(base)
    plain = [r for r in base.tensors.values() if mxfp4.parameter_name(r.name) not in experts]
    return sum(math.prod(one.shape) for one in (*experts.values(), *plain))


def _check(right: bool, ref: TensorRef, wanted: str) -> None:
    if not right:
        raise DataError(f"{ref.path}: {ref.name} is {ref.kind} {ref.shape}, not {wanted}")


def is_expert(stem: str) -> bool:
    """Whether an adapter's tensor, without its prefix, belongs to the experts' matrices."""
    return ".mlp.experts." in f".{stem}" and not stem.endswith("_bias")


def refusal(folder: Path, what: str) -> ConfigError:
    """The error for LoRA on experts where four-bit experts would have to hold it."""
    return ConfigError(
        f"{folder} adapts the experts ({what}), and four-bit experts cannot hold it: a step of "
        "MXFP4 is larger than such a change, so merging would lose it or drown it in rounding",
        hint="serve the adapter unmerged on its base; or --format bf16, which holds it, in three "
        "times the bytes; or --format mxfp4 --requantize-experts, which keeps next to nothing of "
        "a change of 1 % of the weights and two thirds of one of 10 %",
    )


def expert_changes(
    refs: dict[str, TensorRef], config: dict[str, Any], base: Checkpoint, path: Path
) -> list[ExpertChange]:
    """Match the adapter's tensors on experts (by name without prefix) with the base's parameters.

    Raises DataError for what finds no place.
    """
    targets: Sequence[str] = config.get("target_parameters") or ()
    known = experts_of(base)
    parts: dict[tuple[str, int], dict[str, TensorRef]] = {}
    for stem, ref in refs.items():
        match = _PART.fullmatch(stem)
        if not match:
            raise DataError(f"{path} holds {ref.name}, which this version cannot merge")
        depth = match[2].count(".base_layer")
        parts.setdefault((match[1], depth), {})[match[3]] = ref
    found = []
    for module in dict.fromkeys(module for module, _ in parts):
        names = [f"{module}.{name}" for name in mxfp4.PACKED]
        adapted = [n for n in names if any(n == t or n.endswith(f".{t}") for t in targets)]
        depths = [depth for other, depth in parts if other == module]
        if sorted(depths) != list(range(len(adapted))):
            raise DataError(
                f"{path} holds LoRA on {len(depths)} parameters of {module}, but its config's "
                f"target_parameters name {len(adapted)}"
            )
        # The innermost wrapper holds the parameter that the model declares first.
        for depth, name in enumerate(reversed(adapted)):
            found.append(_one(name, parts[module, depth], known, config, path))
    return sorted(
        found, key=lambda change: (change.base.stored[0].path, change.base.stored[0].offset)
    )


def _one(
    name: str,
    parts: dict[str, TensorRef],
    known: dict[str, Experts],
    config: dict[str, Any],
    path: Path,
) -> ExpertChange:
    if name not in known:
        raise DataError(
            f"{path} adapts {name}, which the base lacks",
            hint="is this the base that the adapter was trained on?",
        )
    if len(parts) != 2:
        raise DataError(f"{path} lacks lora_A or lora_B of {name}")
    a, b = parts["lora_A"], parts["lora_B"]
    count, out, inputs = known[name].shape
    rank = rank_of(name, config)
    what = f"rank {rank} and the base's {name} with {count} experts, {inputs} in, {out} out"
    same_shape(a, (count * rank, inputs), what)
    same_shape(b, (out, rank * count), what)
    return ExpertChange(known[name], a, b, scale_of(name, rank, config))
