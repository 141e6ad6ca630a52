"""A tokenizer for a synthetic checkpoint: the tiny model's own, or one of the published size."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path


def write_tokenizer(folder: Path, full: bool):
    """Save the tiny model's tokenizer, filled up to the published ids if `full`; return it."""
    from transformers import AutoTokenizer

    from gptoss_tools.models.tiny_cache import shipped_prompts
    from gptoss_tools.models.tiny_tokenizer import build_tokenizer

    build_tokenizer(shipped_prompts(), 1024).save_pretrained(folder)
    if full:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(filled(json.loads(path.read_text()))), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def filled(tokenizer: dict, size: int = 199_998) -> dict:
    """Add merges of two and three bytes until special tokens start at id 199998, as published.

    What the tiny tokenizer learned is merged first, so its texts stay as short.
    """
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    alphabet = sorted(token for token in vocab if len(token) == 1)
    pairs = [(a, b) for a in alphabet for b in alphabet]
    for left, right in chain(pairs, ((a + b, c) for a, b in pairs for c in alphabet)):
        if len(vocab) == size:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    special = [token for token in tokenizer["added_tokens"] if token["special"]]
    for number, token in enumerate(special):
        token["id"] = size + number
    tokenizer["added_tokens"] = special
    return tokenizer
