"""How many threads torch may use while an export runs through its pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread, as a piece of 1 MB is too little to share.

    Measured on 2 cores that others used too: merging gpt-oss-20b took 7 s on one thread and 80 s on
    two, which spent them waiting for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
