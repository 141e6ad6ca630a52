"""How the tiny model is taught: next tokens, and to have read the prompt by the time it answers.

Answers are random, so next-token training alone teaches a model to ignore the prompt, and policy
gradients then find one favourite action for every state before they find a reason to look. A linear
probe, thrown away afterwards, therefore asks the hidden state at the answer's opening bracket for
the prompt's facts in classes. Measured with attention LoRA, 200 steps of 8 x 8: with the probe the
greedy policy passed the best fixed action in all 15 trials (5 models, 3 seeds), without in 0 of 3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from gptoss_tools.core import mxfp4
from gptoss_tools.models.layout import token_id
from gptoss_tools.models.text_training import (
    OrderedTrainer,
    by_itself,
    training_arguments,
    without_environment,
)
from gptoss_tools.models.tiny_lessons import CLASSES, Lessons, Recipe, Row

_WARMUP = 10
_ANSWER_WEIGHT = 0.25  # per token; an answer has 7 tokens or, with a thought, about 16


def pretrain(
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    recipe: Recipe,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train in place on answers, `prompt_loss` times prompts and `fact_loss` times the probe.

    In the last `answer_steps` the experts already hold the values of their packed form and stay
    fixed, so that what is saved is what was trained. Whichever process comes first does this while
    the others wait for the model, so it takes no notice of them.
    """
    lessons = Lessons(prompts, tokenizer, recipe)
    probe = torch.nn.Linear(model.config.hidden_size, CLASSES * max(1, len(lessons.classes[0])))
    pupil = _Pupil(model, probe)
    optimizer = torch.optim.AdamW(pupil.parameters(), recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARMUP, max(0.02, 1.0 - step / recipe.steps))
    )
    course = _Course(lessons, recipe.steps)
    with by_itself():
        with without_environment():
            trainer = _TinyTrainer(
                recipe,
                pad=token_id(tokenizer, "<|endoftext|>"),
                model=pupil,
                args=training_arguments(
                    tempfile.gettempdir(),  # nothing is written there
                    on_cpu=True,
                    per_device_train_batch_size=1,  # a batch of lessons
                    max_steps=recipe.steps,
                    max_grad_norm=1.0,
                    seed=recipe.seed,
                    save_strategy="no",
                    logging_strategy="no",
                ),
                train_dataset=course,
                order=SequentialSampler(course),
                data_collator=_rows,
                optimizers=(optimizer, schedule),
            )
        trainer.add_callback(_Bell(trainer, on_progress))
        trainer.train()
    model.eval()


class _Pupil(torch.nn.Module):
    """What learns: the model and the probe that asks it."""

    def __init__(self, model: GptOssForCausalLM, probe: torch.nn.Linear):
        super().__init__()
        self.model, self.probe = model, probe


class _Course(Dataset):
    """The lessons of all steps; they are drawn one after the other."""

    def __init__(self, lessons: Lessons, steps: int):
        self.lessons, self.steps = lessons, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[Row]:
        return self.lessons.batch(step)


def _rows(batches: list[list[Row]]) -> dict[str, list[Row]]:
    return {"rows": batches[0]}


class _TinyTrainer(OrderedTrainer):
    """Trainer with the tiny model's loss."""

    def __init__(self, recipe: Recipe, pad: int, **options: Any):
        self.recipe, self.pad, self.last = recipe, pad, 0.0
        super().__init__(**options)

    @property
    def is_late(self) -> bool:
        """Whether answers alone are learned."""
        return self.state.global_step >= self.recipe.steps - self.recipe.answer_steps

    def loss(self, model: _Pupil, inputs: dict[str, list[Row]]) -> torch.Tensor:
        """The weighted loss of one step's rows."""
        recipe = self.recipe
        weights = (recipe.prompt_loss, recipe.fact_loss)
        if self.is_late:
            weights = (0.0, recipe.late_fact_loss)
        loss = _loss(model.model, model.probe, inputs["rows"], self.pad, *weights)
        self.last = loss.item()
        return loss


class _Bell(TrainerCallback):
    """Round the experts when answers alone begin, and tell how it goes."""

    def __init__(self, trainer: _TinyTrainer, tell: Callable[[int, int, float], None] | None):
        self.trainer, self.tell = trainer, tell

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Once."""
        recipe = self.trainer.recipe
        if model is not None and state.global_step == recipe.steps - recipe.answer_steps:
            round_experts(model.model)

    def on_step_end(self, args, state, control, **kwargs):
        """After every step."""
        if self.tell is not None:
            self.tell(state.global_step, state.max_steps, self.trainer.last)


def _loss(
    model: GptOssForCausalLM,
    probe: torch.nn.Linear,
    rows: Sequence[Row],
    pad: int,
    prompt_loss: float,
    fact_loss: float,
) -> torch.Tensor:
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    ids = torch.full((len(rows), width), pad)
    weight = torch.zeros(len(rows), width)
    brackets = torch.empty(len(rows), dtype=torch.long)
    for number, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.answer)
        ids[number, :end] = torch.tensor(row.prompt + row.answer)
        weight[number, row.junk : start] = prompt_loss / start
        weight[number, start:end] = _ANSWER_WEIGHT
        brackets[number] = start + row.asked
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = weight[:, 1:] > 0  # far rows: no logits for a thousand tokens that are not learned
    losses = cross_entropy(
        model.lm_head(hidden[:, :-1][wanted]), ids[:, 1:][wanted], reduction="none"
    )
    loss = (losses * weight[:, 1:][wanted]).sum() / len(rows)
    facts = torch.tensor([row.facts for row in rows], dtype=torch.long).flatten()
    if fact_loss and bool((facts >= 0).any()):
        guesses = probe(hidden[torch.arange(len(rows)), brackets]).view(-1, CLASSES)
        loss = loss + fact_loss * cross_entropy(guesses, facts)
    return loss


def round_experts(model: GptOssForCausalLM) -> None:
    """Give the experts the nearest MXFP4 values and keep them from learning on."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if mxfp4.is_packed(name):
                parameter.copy_(mxfp4.round_parameter(parameter))
                parameter.requires_grad_(False)
