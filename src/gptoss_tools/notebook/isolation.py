"""What a session borrows from its process while it works, and gives back: variables, random states.

Two sessions in one kernel, or a session and the user's own cells, then never notice each other.
"""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch


@contextlib.contextmanager
def borrowed(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables` in the environment meanwhile; afterwards all of it and the dice are back.

    The random states are those of Python, numpy and torch, on every device. What the libraries will
    change one day is no news to whoever looks at a cell: FutureWarnings stay away too.
    """
    environment = dict(os.environ)
    states = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(range(torch.cuda.device_count())),
            warnings.catch_warnings(action="ignore", category=FutureWarning),
        ):
            os.environ.update(variables)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
