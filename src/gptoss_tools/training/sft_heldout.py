"""The loss on held-out examples while training goes on, and the adapter for which it was least.

Nothing is drawn and no gradient is touched, so a run with evaluations ends with the bits of one
without. Rows are shared out over the processes; rank 0 alone writes.
"""

from __future__ import annotations

import math
import time

import torch
from accelerate.utils import gather_object

from gptoss_tools.core.runs import Run
from gptoss_tools.models.adapters import is_adapter
from gptoss_tools.settings.sft import SftSettings
from gptoss_tools.training.measuring import Measuring
from gptoss_tools.training.outcome import write_adapter
from gptoss_tools.training.sft_data import TokenRows
from gptoss_tools.training.sft_trainer import SftTrainer


class HeldOutLoss(Measuring):
    """Measure the loss of the answers.

    Logged: eval_loss, the mean over all learned tokens,
    eval_loss_se, its standard error with rows as the unit that was drawn, and
    eval_mean_token_accuracy, the share of tokens that were the likeliest.
    """

    figure = "eval_loss"
    trainer: SftTrainer

    def __init__(self, run: Run, rows: TokenRows, settings: SftSettings) -> None:
        super().__init__(run, settings.eval_steps or settings.max_steps or 1)
        self.rows, self.settings = rows, settings

    def measure(self, step: int) -> None:
        """Score, log, and keep the adapter if none was better, untrained included."""
        started, trainer = time.monotonic(), self.trainer
        loss, error, accuracy = mean_loss(gather_object(self._scores()))
        logs = {
            "eval_loss": loss,
            "eval_loss_se": error,
            "eval_mean_token_accuracy": accuracy,
            "eval_seconds": time.monotonic() - started,
        }
        self.log(logs)
        if trainer.accelerator.is_main_process and (self.best is None or loss < self.best):
            self.best = loss
            if step and is_adapter(trainer.accelerator.unwrap_model(trainer.model)):
                write_adapter(self.run.best_path, trainer, step=step, eval_loss=loss)
        trainer.accelerator.wait_for_everyone()

    def _scores(self) -> list[tuple[float, int, int]]:
        """Of each of this process's rows: summed loss, learned tokens, likeliest ones."""
        trainer, data = self.trainer, self.rows.dataset
        state = trainer.accelerator
        mine = list(range(state.process_index, len(data), state.num_processes))
        lengths = {row: len(data[row]["input_ids"]) for row in mine}
        mine.sort(key=lengths.__getitem__)  # little padding
        size = self.settings.eval_batch_size
        model, scores = trainer.model, []
        training = model.training
        model.eval()
        try:
            for begin in range(0, len(mine), size):
                rows = [data[row] for row in mine[begin : begin + size]]
                # No DataLoader: it draws from the generator that training draws from.
                batch = trainer._prepare_inputs(trainer.data_collator(rows))
                with torch.no_grad(), trainer.compute_loss_context_manager():
                    out = model(**batch, use_cache=False, fused_lm_head=True)
                sums = (-out.log_probs.float().sum(1), out.label_mask.sum(1), out.is_top1.sum(1))
                scores += zip(*(one.tolist() for one in sums), strict=True)
        finally:
            model.train(training)
        return [(loss, int(count), int(right)) for loss, count, right in scores]


def mean_loss(scores: list[tuple[float, int, int]]) -> tuple[float, float | None, float]:
    """Loss per token, its standard error (None for one row), and the share of likeliest tokens.

    A ratio of two sums over rows: the error is that of the residuals L_i - m T_i (Cochran, Sampling
    Techniques, 6.3), since tokens of one row are no independent draws.
    """
    tokens = sum(count for _, count, _ in scores)
    mean = sum(loss for loss, _, _ in scores) / tokens
    n = len(scores)
    squares = sum((loss - mean * count) ** 2 for loss, count, _ in scores)
    error = math.sqrt(squares * n / (n - 1)) / tokens if n > 1 else None
    return mean, error, sum(right for _, _, right in scores) / tokens
