"""What `gptoss doctor` sees: packages, GPUs, memory, disk, and what each command would lack.

Looks and loads nothing. Secrets do not come here: the caller says which credentials are present.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch

from gptoss_tools.errors import GptossError
from gptoss_tools.models.experts import is_packed_file
from gptoss_tools.models.loading import read_config
from gptoss_tools.models.machine import (
    PUBLISHED,
    available_bytes,
    estimate_memory,
    published_config,
)

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors"),
    *("triton", "kernels", "vllm", "wandb", "trackio", "tensorboard", "modal"),
)


@dataclass(frozen=True)
class Gpu:
    """One CUDA device; memory in bytes."""

    name: str
    capability: str
    memory: int
    free: int


@dataclass(frozen=True)
class Survey:
    """The machine as it is now; memory and disk in bytes."""

    python: str
    system: str
    cores: int
    memory: int
    memory_free: int
    disk_free: int
    gpus: list[Gpu]
    packages: dict[str, str | None]
    model: dict[str, int | str]
    lacks: dict[str, str]


def survey(model: str, folder: Path, credentials: Mapping[str, bool]) -> Survey:
    """Look at this machine for `model` (a resolved name); `folder` says whose disk counts.

    `credentials` maps HF_TOKEN, WANDB_API_KEY and MODAL_TOKEN to whether they are present. `lacks`
    maps a command to one sentence; a command that lacks nothing is not in it.
    """
    gpus = [_gpu(i) for i in range(torch.cuda.device_count())]
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    packages = {name: version_of(name) for name in PACKAGES}
    needs, lacks = _needs(model, device)
    if not credentials["HF_TOKEN"]:
        lacks["export --push"] = "no HF_TOKEN, and no login with `hf auth login`"
    if not credentials["WANDB_API_KEY"]:
        lacks["train-grpo --report-to wandb"] = "no WANDB_API_KEY: it would log offline"
    for tracker in ("trackio", "tensorboard"):
        if not packages[tracker]:
            lacks[f"train-grpo --report-to {tracker}"] = f"the package {tracker} is not installed"
    memory = psutil.virtual_memory()
    return Survey(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=psutil.cpu_count() or 1,
        memory=memory.total,
        memory_free=memory.available,
        disk_free=shutil.disk_usage(_existing(folder)).free,
        gpus=gpus,
        packages=packages,
        model=needs,
        lacks=lacks,
    )


def version_of(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _needs(model: str, device: torch.device) -> tuple[dict[str, int | str], dict[str, str]]:
    """Return what `model` takes, and which commands that rules out on `device`."""
    try:
        config = published_config(model) or read_config(model)
        estimate = estimate_memory(config, weight_bytes=2 if device.type == "cuda" else 4)
    except GptossError as error:
        return {"name": model, "problem": str(error)}, {"train-grpo": str(error)}
    free = available_bytes(device)
    weights = estimate.bfloat16 if device.type == "cuda" else estimate.float32
    train, answer = estimate.training, weights
    if model in PUBLISHED or is_packed_file(config):  # which the experts may stay
        train, answer = estimate.packed_training, estimate.packed_loaded
    short = "needs {:.1f} GB on {}, which has {:.1f} GB free"
    lacks = {}
    if train > free:
        lacks["train-grpo"] = short.format(train / 1e9, device, free / 1e9)
    if answer > free:
        lacks["generate"] = short.format(answer / 1e9, device, free / 1e9)
    return {"name": model, **asdict(estimate)}, lacks


def _gpu(index: int) -> Gpu:
    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    return Gpu(torch.cuda.get_device_name(index), f"{major}.{minor}", total, free)


def _existing(folder: Path) -> Path:
    return next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
