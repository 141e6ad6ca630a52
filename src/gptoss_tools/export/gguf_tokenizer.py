"""The keys of a GGUF that hold the tokenizer, from tokenizer.json alone.

For the published tokenizer and any other with gpt-oss's splitting pattern, which llama.cpp calls
`gpt-4o`. Leaves out merging with other files' opinions: gpt-oss's special tokens have fixed names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from gptoss_tools.chat import harmony
from gptoss_tools.errors import DataError

MODEL, PRE = "gpt2", "gpt-4o"
REQUIRED = [
    *(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "merges")),
    *(f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "eot", "padding")),
    *("tokenizer.ggml.eos_token_ids", "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"),
]
"""Without these, a server splits text, ends answers or writes prompts in another way."""

# Two pieces of o200k's pattern that no other known pattern has together.
_PATTERN_MARKS = (r"\p{N}{1,3}", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+")


def add_tokenizer(writer: GGUFWriter, folder: Path, vocabulary: int) -> None:
    """Add tokens, types, merges, special ids and chat template of the tokenizer in `folder`.

    `vocabulary` is the number of rows of the embedding; ids without a token are named `[PADid]` and
    marked unused. Raises DataError for another kind of tokenizer or one that lacks a special token.
    """
    content = read_tokenizer(folder)
    tokens, types = token_list(content, vocabulary, folder)
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(content))
    ids = {token: place for place, token in enumerate(tokens)}
    for special in ("startoftext", "return", "end", "endoftext", "call"):
        if f"<|{special}|>" not in ids:
            raise DataError(f"the tokenizer in {folder} has no <|{special}|> token")
    writer.add_bos_token_id(ids["<|startoftext|>"])
    writer.add_eos_token_id(ids["<|return|>"])
    # The end of a message. llama.cpp does not stop there: it knows <|return|> and <|call|>.
    writer.add_eot_token_id(ids["<|end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    # Ollama's own list of stops, which llama.cpp does not read.
    stops = [ids[f"<|{stop}|>"] for stop in ("endoftext", "return", "call")]
    writer.add_array("tokenizer.ggml.eos_token_ids", stops)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(_chat_template(folder))


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Read tokenizer.json; DataError where it is missing or not gpt-oss's kind of BPE."""
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, pattern = content["model"]["type"], json.dumps(content["pre_tokenizer"])
    except FileNotFoundError:
        raise DataError(f"{folder} holds no tokenizer.json, which a GGUF contains") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no tokenizer: {error}") from error
    if kind != "BPE" or not all(json.dumps(mark)[1:-1] in pattern for mark in _PATTERN_MARKS):
        raise DataError(
            f"{path} does not split text as gpt-oss's tokenizer does, so llama.cpp would read "
            "other tokens"
        )
    return content


def token_list(
    content: dict[str, Any], vocabulary: int, folder: Path
) -> tuple[list[str], list[int]]:
    """Texts and types of all ids below `vocabulary`.

    Learned tokens keep the byte-level alphabet. Added ones are plain text: control tokens where
    they are special or look like it, else user-defined, which llama.cpp matches before splitting.
    """
    tokens = [f"[PAD{place}]" for place in range(vocabulary)]
    types = [int(TokenType.UNUSED)] * vocabulary
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    found = {place: text for text, place in content["model"]["vocab"].items()}
    found |= {place: token["content"] for place, token in added.items()}
    if max(found) >= vocabulary:
        raise DataError(
            f"the tokenizer in {folder} has an id {max(found)}, and the model {vocabulary} rows"
        )
    for place, text in found.items():
        kind = TokenType.NORMAL
        if place in added:
            special = added[place]["special"] or (text.startswith("<|") and text.endswith("|>"))
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        tokens[place], types[place] = text, int(kind)
    return tokens, types


def _merges(content: dict[str, Any]) -> list[str]:
    """Pairs as `left right`: byte-level tokens hold no space of their own."""
    pairs = content["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def _chat_template(folder: Path) -> str:
    """The model's own template, from either place that keeps it, else gpt-oss's."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    try:
        own = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        own = {}
    template = own.get("chat_template") if isinstance(own, dict) else None
    return template if isinstance(template, str) else harmony.chat_template()
