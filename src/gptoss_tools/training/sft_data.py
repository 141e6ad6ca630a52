"""Examples as token ids with labels: what is read, what is learned, what is too long for either.

Tokenised once, here, so that nothing is added, cut or templated later. A prompt's tokens are those
the model will see when it is asked; the answer's follow as they stand in the whole text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from gptoss_tools.data.instructions import Instructions
from gptoss_tools.data.prompter import Prompter
from gptoss_tools.errors import DataError

IGNORED = -100  # the label of a token that is read and not learned
_CHUNK = 1000


@dataclass(frozen=True)
class TokenRows:
    """`dataset` has the columns `input_ids` and `labels` (int32 lists of one length per row).

    `dropped` examples had prompts too long, `cut` lost the end of their answer; `tokens` are read
    and `learned` of them learned, over all rows. `sha256` covers ids and labels in order.
    """

    dataset: datasets.Dataset
    dropped: int
    cut: int
    tokens: int
    learned: int
    longest: int
    largest_id: int
    sha256: str

    def __len__(self) -> int:
        return len(self.dataset)


def tokenize_examples(
    found: Instructions,
    prompter: Prompter,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    long_prompts: str = "error",
    completion_only_loss: bool = True,
) -> TokenRows:
    """Render and tokenise every example; raises DataError naming the row that cannot be used.

    A prompt that alone fills `max_length` leaves nothing to learn: an error, or with `long_prompts`
    "drop" left out. The answers of other long examples lose their end.
    """
    chunks: list[pa.RecordBatch] = []
    digest = hashlib.sha256()
    long: list[tuple[str, int]] = []
    cut = tokens = learned = longest = largest = 0
    for begin in range(0, len(found), _CHUNK):
        places = found.places[begin : begin + _CHUNK]
        pairs = []
        for example, place in zip(found.examples[begin : begin + _CHUNK], places, strict=True):
            try:
                pairs.append(prompter.pair(example))
            except DataError as error:
                raise DataError(f"{place}: {error}", hint=error.hint) from error
        ids: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        rows = token_pairs(pairs, tokenizer, adds_bos=prompter.adds_bos)
        for place, (prompt, answer) in zip(places, rows, strict=True):
            if len(prompt) >= max_length:
                long.append((place, len(prompt)))
                continue
            cut += len(prompt) + len(answer) > max_length
            row = np.array([*prompt, *answer][:max_length], dtype="<i4")
            label = row.copy()
            if completion_only_loss:
                label[: len(prompt)] = IGNORED
            digest.update(len(row).to_bytes(4, "little") + row.tobytes() + label.tobytes())
            ids.append(row)
            labels.append(label)
            tokens, learned = tokens + len(row), learned + int((label[1:] != IGNORED).sum())
            longest, largest = max(longest, len(row)), max(largest, int(row.max()))
        kind = pa.list_(pa.int32())
        columns = [pa.array(ids, kind), pa.array(labels, kind)]
        chunks.append(pa.RecordBatch.from_arrays(columns, ["input_ids", "labels"]))
    if long and (long_prompts == "error" or len(long) == len(found)):
        raise _too_long(long, len(found), max_length)
    table = InMemoryTable(pa.Table.from_batches(chunks))
    return TokenRows(
        dataset=datasets.Dataset(table),
        dropped=len(long),
        cut=cut,
        tokens=tokens,
        learned=learned,
        longest=longest,
        largest_id=largest,
        sha256=digest.hexdigest(),
    )


def token_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, *, adds_bos: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (prompt ids, answer ids); `adds_bos`: as the tokenizer begins any text, if it does."""
    prompts = _ids(tokenizer, [prompt for prompt, _ in pairs])
    wholes = _ids(tokenizer, [prompt + answer for prompt, answer in pairs])
    first = _first_token(tokenizer) if adds_bos else []
    for (_, text), prompt, whole in zip(pairs, prompts, wholes, strict=True):
        if whole[: len(prompt)] == prompt:
            answer = whole[len(prompt) :]
        else:  # a token would span both, which the model, given the prompt alone, cannot write
            (answer,) = _ids(tokenizer, [text])
        yield ([] if prompt[:1] == first else first) + prompt, answer


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(text=texts, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


def _first_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos: Any = tokenizer.bos_token_id
    begun: Any = tokenizer(text="a")["input_ids"]
    return [bos] if bos is not None and begun[:1] == [bos] else []


def _too_long(long: list[tuple[str, int]], rows: int, max_length: int) -> DataError:
    place, length = long[0]
    more = f" ({len(long)} of {rows} examples)" if len(long) > 1 else ""
    need = max(length for _, length in long)
    return DataError(
        f"{place}: the prompt has {length} tokens, which leaves no room for an answer in the "
        f"{max_length} of max_length{more}",
        hint=f"--max-length {2 * need} takes them all; --long-prompts drop leaves such rows out",
    )
