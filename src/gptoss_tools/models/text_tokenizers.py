"""New tokenizers for plain text, and plain text to token ids.

`character`: one token for each character of the text; any other becomes the mark for unknown ones.
`bpe`: byte-level pairs learned from the text, so that any text survives. Both are ordinary fast
tokenizers that are saved with their model and load by AutoTokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gptoss_tools.errors import ConfigError

UNKNOWN = "\ufffd"  # what decoders everywhere show for what they do not know
END = "<|endoftext|>"
_BYTES = 256
_LEAST = 512


def new_tokenizer(
    kind: str, texts: Sequence[str], vocab_size: int | None = None
) -> PreTrainedTokenizerFast:
    """Learn a tokenizer of a kind, `character` or `bpe`; `vocab_size` None: `bpe_size`.

    Where there are several texts, a token of its own parts them and begins each.
    """
    if kind == "character":
        tokenizer = _characters(texts)
    else:
        tokenizer = _pairs(texts, vocab_size or bpe_size(texts), ends=len(texts) > 1)
    ends = {"bos_token": END, "eos_token": END, "pad_token": END} if len(texts) > 1 else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN if kind == "character" else None,
        clean_up_tokenization_spaces=False,
        **ends,
    )


def bpe_size(texts: Sequence[str]) -> int:
    """Return how many tokens to learn: more for a longer text, at least 512.

    Below 0.1 MB four times the distinct characters, at most 1000; from there on 500, and 200 more
    for each doubling beyond 1 MB, in hundreds, at most 8000.
    """
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    if megabytes < 0.1:
        size = min(4 * len(set().union(*texts)), 1000)
    else:
        size = min(round(500 + 200 * math.log2(megabytes), -2), 8000)
    return max(_LEAST, int(size))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """Return the token ids of all texts, one after the other: int32 [_T].

    Each text is read in one piece, so no token depends on where a chunk happened to end. The end
    token goes before every text if the tokenizer has one, an empty line between them otherwise.
    Special tokens that are written out in a text are read as such.
    """
    if len(texts) > 1 and tokenizer.eos_token_id is None:
        texts = ["\n\n".join(texts)]
    parts: list[np.ndarray] = []
    for text in texts:
        if len(texts) > 1:
            parts.append(np.array([tokenizer.eos_token_id], dtype=np.int32))
        parts.append(_ids(tokenizer, text))
    return np.concatenate(parts)


def unknown_count(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> int:
    """Return how many of the tokens stand for something the tokenizer does not know."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:  # as in GPT-2, which knows all bytes
        return 0
    return int((ids == unknown).sum())


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return what generation begins with: the prompt, or else what a text begins with.

    Without a prompt that is the token that begins a text, a new line where there is none, or token
    0 where the text had no lines either.
    """
    if prompt:
        return _ids(tokenizer, prompt).tolist()
    first: Any = tokenizer.bos_token_id
    if first is not None:
        return [first]
    line = _ids(tokenizer, "\n")
    return line.tolist() if len(line) and not unknown_count(tokenizer, line) else [0]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # Without the offsets that a call would compute: a quarter of the time, half of the memory.
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return np.array(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids, "i4")
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def _characters(texts: Sequence[str]) -> Tokenizer:
    # Byte pairs without a single merge leave the characters.
    known = sorted(set().union(*texts) - {UNKNOWN})
    vocabulary = {character: number for number, character in enumerate([*known, UNKNOWN])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _pairs(texts: Sequence[str], size: int, ends: bool) -> Tokenizer:
    if size <= _BYTES + ends:
        raise ConfigError(
            f"vocab_size is {size}, and {_BYTES} tokens are the single bytes",
            hint=f"give more than {_BYTES + ends}",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - ends,  # the end token comes on top
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
