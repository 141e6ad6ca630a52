"""What next-token trainings share: transformers' Trainer on rows in an order of their own.

Also how a Trainer can work by itself inside a program whose processes belong to something else.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import clear_environment
from torch.utils.data import Sampler
from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback


def training_arguments(output_dir: str, *, on_cpu: bool, **own: Any) -> TrainingArguments:
    """TrainingArguments without Trainer's surprises: no bars, no dropped columns, no hidden NaN."""
    quiet: dict[str, Any] = {
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
    }
    return TrainingArguments(output_dir=output_dir, **quiet, **own)


class OrderedTrainer(Trainer):
    """A Trainer whose rows come as `order` says, and whose `loss` is its own."""

    def __init__(self, *, order: Sampler, **options: Any):
        self.order = order
        super().__init__(**options)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)  # stdout belongs to results

    def loss(self, model: Any, inputs: Any) -> torch.Tensor:
        """The loss of one micro-batch, a mean; Trainer divides it by the accumulated ones."""
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        """Replaces Trainer's shuffle."""
        return self.order

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Replaces Trainer's, which asks the model for its loss."""
        loss = self.loss(model, inputs)
        return (loss, {}) if return_outputs else loss


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """Let what is trained inside know of no other process or device, and leave no trace of it.

    accelerate keeps for good what it found first, and Trainer seeds every generator there is.
    Inside, make the Trainer `without_environment`.
    """
    states: Any = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    draws, numpy_draws = random.getstate(), np.random.get_state()
    for state in states:
        state._shared_state.clear()
    try:
        yield
    finally:
        for state, held in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(held)
        random.setstate(draws)
        np.random.set_state(numpy_draws)


without_environment = clear_environment
"""Hide torchrun's variables: a Trainer made inside waits for no other process."""
