"""End a completion where its action is complete: `stop_at_action`.

Behind the closing bracket of a valid action in the final channel the end of the answer is written
by us and not by the policy, so that nothing is drawn after the decision. That token is no deed of
the policy's, and it leaves the loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from gptoss_tools.chat.actions import Reason, parse_action
from gptoss_tools.chat.families import Chat
from gptoss_tools.training.masking import recount

CLOSING = "]"


class EndAfterAction(LogitsProcessor):
    """Allow nothing but the end after a valid action; `ended` says which rows it ended.

    `rows` are the table's, one for each completion; prompts have `prompt_length` tokens, padding
    included; `closing` is an int64 tensor of the tokens that end in a closing bracket.
    """

    def __init__(
        self,
        chat: Chat,
        rows: Sequence[Mapping[str, Any]],
        prompt_length: int,
        closing: torch.Tensor,
    ) -> None:
        self.chat, self.rows, self.prompt_length = chat, rows, prompt_length
        self.closing = closing
        self.end = next(iter(chat.stops))
        self.ended = [False] * len(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [B, V] in which the rows that are done have one token left."""
        if input_ids.size(1) == self.prompt_length:
            return scores
        for row in torch.isin(input_ids[:, -1], self.closing).nonzero().flatten().tolist():
            if self._has_action(input_ids[row, self.prompt_length :].tolist(), self.rows[row]):
                self.ended[row] = True
                scores[row] = -torch.inf
                scores[row, self.end] = 0
        return scores

    def _has_action(self, ids: list[int], row: Mapping[str, Any]) -> bool:
        if any(token in self.chat.stops for token in ids):
            return False  # it came to an end of its own; what follows is padding
        said = self.chat.parse([*ids, self.end])
        decision = parse_action(said, int(row["n_actions"]), names=row.get("actions"))
        return decision.reason is Reason.OK


def closing_tokens(tokenizer: Any) -> torch.Tensor:
    """Ids of the tokens whose text ends in a closing bracket, white space aside."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    found = [token for token, text in enumerate(texts) if text.rstrip().endswith(CLOSING)]
    return torch.tensor(found, dtype=torch.long)


class StopsAtActions:
    """A mixin before GRPOTrainer; without `stop_at_action` it changes nothing."""

    # What is used of the trainer it is mixed into.
    accelerator: Any
    model_wrapped: Any
    processing_class: Any
    reward: Any
    stop_at_action: bool = False
    _asked: Sequence[Mapping[str, Any]] = ()
    _ended: Sequence[bool] = ()
    _closing: torch.Tensor | None = None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Extends TRL's: ends that we wrote leave the loss."""
        self._asked = inputs
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.stop_at_action:
            mask = batch["completion_mask"]
            ended = torch.tensor(self._ended, device=mask.device)
            last = mask.sum(dim=1) - 1
            rows = ended.nonzero().flatten()
            mask[rows, last[rows]] = 0
            recount(batch, self.accelerator.gather)
        return batch

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Extends TRL's: nothing but the end is drawn after an action."""
        if not self.stop_at_action:
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        with self._ending(self.accelerator.unwrap_model(self.model_wrapped)):
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]

    @contextlib.contextmanager
    def _ending(self, model: Any) -> Iterator[None]:
        """Within this block `model.generate` ends completions after their actions."""
        plain, own = model.generate, "generate" in vars(model)
        if self._closing is None:
            self._closing = closing_tokens(self.processing_class).to(self.accelerator.device)
        closing = self._closing

        def generate(*, input_ids: torch.Tensor, **options: Any) -> Any:
            ending = EndAfterAction(self.reward.chat, self._asked, input_ids.size(1), closing)
            options["logits_processor"] = LogitsProcessorList([ending])
            try:
                return plain(input_ids=input_ids, **options)
            finally:
                self._ended = ending.ended

        model.generate = generate
        try:
            yield
        finally:
            if own:
                model.generate = plain
            else:
                del model.generate
