"""The trainer's side of `share_prompts`: it scores groups along branches, within a budget."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from gptoss_tools.models.branch_attention import follow_branches
from gptoss_tools.training import shared_prefix
from gptoss_tools.training.shared_prefill import read_prompts_once


class SharesPrompts:
    """A mixin before GRPOTrainer; without `share_prompts` it changes nothing."""

    # What is used of the trainer it is mixed into.
    accelerator: Any
    share_prompts: bool = False
    tokens_per_forward: int | None = None
    fused_attention: bool = False

    def follow_branches(self, models: Sequence[Any]) -> None:
        """Make these able to score groups; a reference model may be among them, or None."""
        for model in models:
            if self.share_prompts and isinstance(model, torch.nn.Module):
                follow_branches(model)

    def prompts_read_once(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Within it, `model.generate` reads each prompt once."""
        if not self.share_prompts:
            return contextlib.nullcontext()
        return read_prompts_once(model, budget=self.tokens_per_forward, fused=self.fused_attention)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        *args: Any,
        **more: Any,
    ) -> Any:
        """Replaces TRL's, with `share_prompts`: completions of one prompt share its tokens."""
        if not self.share_prompts:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                *args,
                **more,
            )
        with self.accelerator.autocast():
            logps, entropies = shared_prefix.score(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                fused=self.fused_attention,
                budget=self.tokens_per_forward,
                batch_size=batch_size,
                agree=self._most,
            )
        return logps, entropies if compute_entropy else None, None

    def _most(self, forwards: int) -> int:
        """Return the largest number of all processes: sharded weights are gathered in step."""
        if self.accelerator.num_processes == 1:
            return forwards
        own = torch.tensor([forwards], device=self.accelerator.device)
        return int(self.accelerator.gather(own).max())
