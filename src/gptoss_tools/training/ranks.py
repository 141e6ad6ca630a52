"""Several processes as one: who speaks, and how an error of rank 0 reaches the others.

With one process every function is the obvious one-liner and nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather

Result = TypeVar("Result")


def join(device: str = "auto") -> PartialState:
    """Join the other processes, if torchrun or accelerate started this one among several."""
    return PartialState(cpu=True) if device == "cpu" else PartialState()


def from_main(work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0 alone and return its result, or raise its error, on every rank.

    Result and error must be picklable. Without this, an error on rank 0 leaves the others waiting.
    """
    state = PartialState()
    if state.num_processes == 1:
        return work()
    message: list[Any] = [None, None]
    if state.is_main_process:
        try:
            message[0] = work()
        except Exception as error:
            message[1] = error
    broadcast_object_list(message, from_process=0)
    if message[1] is not None:
        raise message[1]
    return message[0]


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return, for each flag, whether it is set on any rank: the same answer everywhere."""
    state = PartialState()
    if state.num_processes == 1:
        return flags
    mine = torch.tensor([[int(flag) for flag in flags]], device=state.device)
    gathered: Any = gather(mine)  # a tensor for a tensor, which accelerate's types do not say
    return tuple(bool(column) for column in gathered.amax(dim=0).tolist())
