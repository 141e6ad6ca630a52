"""What Modal calls in a container: `gptoss` on the arguments it is given.

Plain functions that `modal_app` turns into Modal functions, and which `.local()` runs here, in the
current folder and without a volume.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from gptoss_tools.remote.attempt import carry_out
from gptoss_tools.remote.child import Node
from gptoss_tools.remote.volume import WORK, WORK_MOUNT


def command_remote(*argv: str) -> dict[str, Any]:
    """Run any command: `command_remote("train-grpo", "--max-steps", "20")`."""
    import modal

    if modal.is_local():
        return carry_out(argv, Path.cwd(), call="local", say=sys.stdout.write)
    return carry_out(
        argv,
        Path(WORK_MOUNT),
        call=modal.current_function_call_id() or "call",
        say=sys.stdout.write,
        volume=modal.Volume.from_name(WORK),
        processes=count_gpus(),
        node=_node(),
    )


def train_remote(*argv: str) -> dict[str, Any]:
    """Train: the arguments of `gptoss train-grpo`."""
    return command_remote("train-grpo", *_as_json(argv))


def evaluate_remote(*argv: str) -> dict[str, Any]:
    """Evaluate: the arguments of `gptoss evaluate`."""
    return command_remote("evaluate", *_as_json(argv))


def infer_remote(*argv: str) -> dict[str, Any]:
    """Answer a prompt or a table: the arguments of `gptoss generate`."""
    return command_remote("generate", *_as_json(argv))


def count_gpus() -> int:
    """Return how many GPUs this machine shows; 1 without any, for one process still runs."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return 1
    return max(1, sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))


def _as_json(argv: tuple[str, ...]) -> tuple[str, ...]:
    return argv if "--json" in argv else (*argv, "--json")


def _node() -> Node:
    """Say which of the machines of a cluster this one is; a single machine is all of them."""
    import modal

    try:
        cluster = modal.Cluster.from_context()
    except modal.exception.InvalidError:
        return Node()
    addresses = cluster.container_ips()
    return Node(cluster.container_rank(), len(addresses), addresses[0])
