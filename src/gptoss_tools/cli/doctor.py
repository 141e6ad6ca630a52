"""gptoss doctor."""

from __future__ import annotations

import netrc
import os
from pathlib import Path

from ..console import out
from ..load import Loaded
from ..settings import DoctorSettings
from .common import build_tiny_first, cache_dir, hub_token
from .options import command


@command(
    "doctor",
    DoctorSettings,
    examples=["gptoss doctor", "gptoss doctor --model tiny", "gptoss doctor --json"],
)
def doctor(settings: DoctorSettings, loaded: Loaded) -> None:
    """Say what this machine has and what each command lacks.

    Credentials are reported as present or not, never shown. Nothing is loaded or downloaded but the
    model's config.json.
    """
    from ..models.names import resolve_model
    from ..models.survey import survey

    model = settings.model
    build_tiny_first(model)
    credentials = {
        "HF_TOKEN": bool(hub_token()),
        "WANDB_API_KEY": bool(os.environ.get("WANDB_API_KEY")) or _in_netrc("api.wandb.ai"),
        "MODAL_TOKEN": bool(os.environ.get("MODAL_TOKEN_ID"))
        or (Path.home() / ".modal.toml").exists(),
    }
    found = survey(resolve_model(model, cache_dir=cache_dir()), Path.cwd(), credentials)
    gb = "{:.1f} GB".format
    lines = [
        f"python {found.python} on {found.system}, {found.cores} cores, "
        f"{gb(found.memory_free / 1e9)} of {gb(found.memory / 1e9)} memory free, "
        f"{gb(found.disk_free / 1e9)} disk free",
        *(
            f"GPU {gpu.name}, compute capability {gpu.capability}, "
            f"{gb(gpu.free / 1e9)} of {gb(gpu.memory / 1e9)} free"
            for gpu in found.gpus
        ),
        *([] if found.gpus else ["no GPU"]),
        " ".join(f"{name} {version or '-'}" for name, version in found.packages.items()),
        " ".join(f"{name} {'present' if there else '-'}" for name, there in credentials.items()),
    ]
    if "packed" in found.model:
        sizes = ("packed", "bfloat16", "training", "packed_training")
        size = {k: gb(int(found.model[k]) / 1e9) for k in sizes}
        lines.append(
            f"model {model}: {size['packed']} packed, {size['bfloat16']} in bfloat16, about "
            f"{size['training']} to train, {size['packed_training']} with packed experts"
        )
    lines += [f"{name} lacks: {reason}" for name, reason in found.lacks.items()]
    if not found.lacks:
        lines.append("every command has what it needs")
    out.result(
        {**vars(found), "gpus": [vars(g) for g in found.gpus], "credentials": credentials},
        "\n".join(lines),
    )


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
