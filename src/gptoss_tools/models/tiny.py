"""The tiny gpt-oss: the embedded default model, built here in seconds without Hub, account or GPU.

A real GptOssForCausalLM with every trait the 20b has (sinks, sliding and full attention, yarn,
top-k experts), taught to answer decision prompts in valid Harmony with random actions, and saved in
the published checkpoint's layout. It knows how to speak and nothing about what is right: training
has to supply that. Where the prompts come from is the caller's affair.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

from gptoss_tools.errors import DataError
from gptoss_tools.models.layout import token_id, write_checkpoint
from gptoss_tools.models.tiny_lessons import NO_FACT, PROMPT_END, Recipe, completion
from gptoss_tools.models.tiny_pretraining import pretrain
from gptoss_tools.models.tiny_tokenizer import build_tokenizer

__all__ = ["Recipe", "build_tiny", "tiny_config"]


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> GptOssConfig:
    """gpt-oss in small: 2 layers (sliding, full), 4 experts of which 2 run, heads of 32."""
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
        pad_token_id=token_id(tokenizer, "<|endoftext|>"),
        eos_token_id=token_id(tokenizer, "<|return|>"),
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
    kind of machine. Raises DataError for other prompts. Torch's global random state is left as it
    was.
    """
    recipe = recipe or Recipe()
    if not prompts:
        raise DataError("the tiny model needs at least one prompt")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.endswith(PROMPT_END):
            raise DataError(f"prompt {number} of the tiny model does not end in {PROMPT_END}")
    texts = [*prompts, completion(recipe.answers[0], NO_FACT + ".")]
    tokenizer = build_tokenizer(texts, recipe.vocab_size)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(recipe.seed)
        config = tiny_config(tokenizer)
        config._experts_implementation = "grouped_mm"
        model = GptOssForCausalLM(config)
        pretrain(model, tokenizer, prompts, recipe, on_progress)
    return write_checkpoint(model, config, folder, tokenizer=tokenizer, shards=recipe.shards)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads add gradients of embeddings and experts in any order, so bits would vary."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
