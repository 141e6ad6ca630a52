"""StepStream's draws as the index stream behind TRL's dataloader.

One generation batch g holds the draws g*S .. g*S+S-1 one after the other, S being
steps_per_generation: S * prompts_per_step * num_generations rows over all processes. TRL reads one
dataloader batch per micro-step and looks at every (S * num_iterations)-th only, so the sampler
emits each generation batch that many times and no draw is lost. With num_iterations = 1 a
micro-step takes one draw, and S of them are generated together; with more, draws come slower.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from gptoss_tools.core.stream import StepStream


class GenerationSampler(Sampler[int]):
    """Row indices for `micro_steps` dataloader batches of all processes; one pass is a whole run.

    Consecutive per-process batches go to consecutive ranks (accelerate's BatchSamplerShard), so the
    concatenation over ranks is the same for any number of processes.
    """

    def __init__(
        self,
        stream: StepStream,
        *,
        micro_steps: int,
        steps_per_generation: int,
        num_iterations: int,
    ):
        self.stream = stream
        self.micro_steps = micro_steps
        self.steps_per_generation = steps_per_generation
        self.repeats = steps_per_generation * num_iterations

    @property
    def batch_rows(self) -> int:
        """Rows of one generation batch."""
        stream = self.stream
        return self.steps_per_generation * stream.prompts_per_step * stream.num_generations

    def generation_batch(self, generation: int) -> np.ndarray:
        """Rows of one generation batch: int64[S * prompts * num_generations], draw after draw."""
        first = generation * self.steps_per_generation
        draws = range(first, first + self.steps_per_generation)
        return np.concatenate([self.stream.rows(t) for t in draws])

    def __len__(self) -> int:
        return self.micro_steps * self.batch_rows

    def __iter__(self) -> Iterator[int]:
        for generation in range(-(-self.micro_steps // self.repeats)):
            rows = self.generation_batch(generation).tolist()
            for _ in range(min(self.repeats, self.micro_steps - generation * self.repeats)):
                yield from rows
