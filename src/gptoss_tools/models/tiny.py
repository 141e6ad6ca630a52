"""The tiny gpt-oss: the embedded default model, built here in seconds without Hub, account or GPU.

A real GptOssForCausalLM with every trait the 20b has (sinks, sliding and full attention, yarn,
top-k experts), taught to answer decision prompts in valid Harmony with random actions, and saved in
the published checkpoint's layout. It knows how to speak and nothing about what is right: training
has to supply that. Where the prompts come from is the caller's affair.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

from gptoss_tools.core import mxfp4
from gptoss_tools.errors import DataError
from gptoss_tools.models.layout import write_checkpoint
from gptoss_tools.models.tiny_tokenizer import SPECIAL_TOKENS, build_tokenizer

PROMPT_END = "<|start|>assistant"
FACT = re.compile(r"[A-Za-z]+ \d+(?:\.\d+)?")
"""What the analysis channel repeats from the prompt: a word and its number. Never an action."""

NO_FACT = "Nothing to compare"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the tiny model's bits, prompts and machine aside."""

    version: int = 1
    seed: int = 0
    steps: int = 300
    rounded_steps: int = 60
    batch_size: int = 16
    learning_rate: float = 4e-3
    num_actions: int = 4
    analysis_share: float = 0.25
    prompt_loss: float = 0.3
    noisy_share: float = 0.125
    facts: int = 1
    vocab_size: int = 640
    shards: int = 3


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> GptOssConfig:
    """gpt-oss in small: 2 layers (sliding, full), 4 experts of which 2 run, heads of 32."""
    ids = tokenizer.convert_tokens_to_ids
    return GptOssConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=128,
        max_position_embeddings=131072,
        router_aux_loss_coef=0.9,
        pad_token_id=ids("<|endoftext|>"),
        eos_token_id=ids("<|return|>"),
        dtype="float32",
    )


def build_tiny(
    folder: Path,
    *,
    prompts: Sequence[str],
    recipe: Recipe | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> Path:
    """Train the tiny model on `prompts` and write its checkpoint into `folder`, new or empty.

    `prompts` are rendered Harmony, each ending in `<|start|>assistant`. `on_progress(step, steps,
    loss)` is called after every step. The same prompts and recipe give the same bytes on the same
    machine with the same number of threads. Raises DataError for other prompts. Torch's global
    random state is left as it was.
    """
    recipe = recipe or Recipe()
    if not prompts:
        raise DataError("the tiny model needs at least one prompt")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.endswith(PROMPT_END):
            raise DataError(f"prompt {number} of the tiny model does not end in {PROMPT_END}")
    texts = [*prompts, completion(0, NO_FACT + ".")]
    tokenizer = build_tokenizer(texts, recipe.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        config = tiny_config(tokenizer)
        config._experts_implementation = "grouped_mm"
        model = GptOssForCausalLM(config)
        pretrain(model, tokenizer, prompts, recipe, on_progress)
    return write_checkpoint(model, config, folder, tokenizer=tokenizer, shards=recipe.shards)


def completion(action: int, thought: str = "") -> str:
    """A valid Harmony completion: the final channel, after a thought in analysis if there is one."""
    final = f"<|channel|>final<|message|>[{action}]<|return|>"
    if not thought:
        return final
    return f"<|channel|>analysis<|message|>{thought}<|end|>{PROMPT_END}{final}"


def pretrain(
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    recipe: Recipe,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Next-token training on prompts with random answers, in place.

    Cross entropy of the completion, plus `prompt_loss` times that of the prompt, which gives the
    frozen base the number features that a small adapter later builds on. In the last
    `rounded_steps` the experts already hold the values of their packed form and stay fixed.
    """
    draw = random.Random(recipe.seed)
    encoded = [tokenizer(prompt).input_ids for prompt in prompts]
    facts = [facts_of(prompt) for prompt in prompts]
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=0.0)
    warmup = 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * max(0.02, 1.0 - step / recipe.steps),
    )
    model.train()
    for step in range(recipe.steps):
        if step == recipe.steps - recipe.rounded_steps:
            _round_experts(model)
        rows = []
        for _ in range(recipe.batch_size):
            number = draw.randrange(len(prompts))
            thought = ""
            if draw.random() < recipe.analysis_share:
                thought = (
                    ", ".join(draw.sample(facts[number], min(recipe.facts, len(facts[number]))))
                    + "."
                )
            answer = tokenizer(completion(draw.randrange(recipe.num_actions), thought)).input_ids
            prompt, noise = encoded[number], 0
            if (
                draw.random() < recipe.noisy_share
            ):  # any prompt, not these only, must end in Harmony
                noise = draw.randrange(len(prompt) - 4)
                junk = [draw.randrange(len(tokenizer) - len(SPECIAL_TOKENS)) for _ in range(noise)]
                prompt = junk + prompt[noise:]
            rows.append((prompt, answer, noise))
        loss = _loss(model, rows, tokenizer.pad_token_id, recipe.prompt_loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if on_progress:
            on_progress(step + 1, recipe.steps, loss.item())
    model.eval()


def facts_of(prompt: str) -> list[str]:
    """The words with a number in the last message of a rendered prompt."""
    last = prompt.removesuffix(PROMPT_END).rsplit("<|message|>", 1)[-1]
    return FACT.findall(last) or [NO_FACT]


def _loss(
    model: GptOssForCausalLM,
    rows: list[tuple[list[int], list[int], int]],
    pad: int,
    prompt_loss: float,
) -> torch.Tensor:
    width = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    ids = torch.full((len(rows), width), pad)
    weight = torch.zeros(len(rows), width)
    for number, (prompt, answer, noise) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[number, :end] = torch.tensor(prompt + answer)
        weight[number, noise : len(prompt)] = prompt_loss / len(prompt)
        weight[number, len(prompt) : end] = 1.0 / len(answer)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return (losses * weight[:, 1:].flatten()).sum() / len(rows)


def _round_experts(model: GptOssForCausalLM) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if mxfp4.is_packed(name):
                parameter.copy_(mxfp4.round_parameter(parameter))
                parameter.requires_grad_(False)
