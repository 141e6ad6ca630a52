"""The tiny model's tokenizer: a byte-level BPE with gpt-oss's special tokens and chat template.

The special strings stand in gpt-oss's order behind the learned tokens, so that everything that
handles the real tokenizer handles this one. Any UTF-8 text survives encoding and decoding. Unlike
o200k it merges across words: the sentences that every decision prompt repeats become one token each
and a prompt half as long, which is what makes training on a CPU a matter of minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gptoss_tools.core import harmony

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

PATTERN = r"\d|[^\d\[\]]+|[\[\]]"
"""Text is cut at digits and brackets before merging, so those are always tokens of their own."""


def build_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn up to `vocab_size` tokens, specials included, from Harmony texts.

    `[3]` is always the three tokens `[`, `3`, `]`. Padding goes left, as generation needs it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = [piece for text in texts for piece in harmony_pieces(text)]
    tokenizer.train_from_iterator(plain, trainer)
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
