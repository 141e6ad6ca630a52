"""The tiny model's tokenizer: a byte-level BPE with gpt-oss's special tokens and chat template.

Same splitting pattern as gpt-oss (o200k; llama.cpp calls it `gpt-4o`), same special strings in the
same order behind the learned tokens, so that everything that handles the real tokenizer handles
this one. Any UTF-8 text survives encoding and decoding. One thing more: phrases that the decision
prompts repeat are added tokens, matched before the text is split. That halves the prompts, and so
the time it takes to train on a CPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from gptoss_tools.chat import harmony

_NAMES = {
    199998: "startoftext",
    199999: "endoftext",
    200002: "return",
    200003: "constrain",
    200005: "channel",
    200006: "start",
    200007: "end",
    200008: "message",
    200012: "call",
    200018: "endofprompt",
}
SPECIAL_TOKENS = [f"<|{_NAMES.get(i, f'reserved_{i}')}|>" for i in range(199998, 200019)]
"""The 21 special tokens of the published tokenizer, in id order (199998 to 200018)."""

_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _SUFFIX,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _SUFFIX,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""How o200k splits text before merging (openai/tiktoken, o200k_base)."""


def build_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn up to `vocab_size` tokens, specials and phrases included, from Harmony texts.

    The pattern keeps brackets and digits apart, so `[3]` is always the three tokens `[`, `3`, `]`.
    Padding goes left, as generation needs it.
    """
    phrases = repeated_phrases(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(phrases),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = [piece for text in texts for piece in harmony_pieces(text)]
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = harmony.chat_template()
    return fast


def harmony_pieces(text: str) -> list[str]:
    """The text between special tokens, which is all that merges may be learned from."""
    pieces = [text]
    for token in SPECIAL_TOKENS:
        pieces = [part for piece in pieces for part in piece.split(token)]
    return [piece for piece in pieces if piece]


def repeated_phrases(texts: Sequence[str], share: float = 0.05) -> list[str]:
    """The runs of text without digits or brackets that stand in at least `share` of the texts.

    Only ASCII with a space in it: the byte-level decoder would misread other added tokens.
    """
    found: Counter[str] = Counter()
    for text in texts:
        runs = {run for piece in harmony_pieces(text) for run in re.split(r"[\d\[\]]+", piece)}
        found.update(run for run in runs if len(run) > 3 and run.isascii() and " " in run)
    return sorted(run for run, count in found.items() if count >= share * len(texts))
