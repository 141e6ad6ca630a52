"""A GGUF holds the whole tokenizer, read from tokenizer.json and nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
from gguf import TokenType
from gguf_reading import read_gguf

from gptoss_tools.chat.harmony import chat_template
from gptoss_tools.errors import DataError
from gptoss_tools.export.gguf import export_gguf
from gptoss_tools.export.gguf_tokenizer import read_tokenizer, token_list
from gptoss_tools.models.tiny_tokenizer import SPECIAL_TOKENS, build_tokenizer

TEXT = "<|start|>user<|message|>the quick tank of {} kWh, the quick tank<|end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer with learned tokens, a phrase of its own, and the special tokens behind them."""
    out = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer([TEXT.format(n) for n in range(20)], 400).save_pretrained(out)
    return out


def test_every_id_has_its_text_and_type(folder):
    content = read_tokenizer(folder)
    count = max(token["id"] for token in content["added_tokens"]) + 1
    tokens, types = token_list(content, count + 2, folder)
    assert len(tokens) == len(types) == count + 2
    for text, place in content["model"]["vocab"].items():
        assert (tokens[place], types[place]) == (text, TokenType.NORMAL)
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    assert {types[added[text]] for text in SPECIAL_TOKENS} == {TokenType.CONTROL}
    phrases = set(added) - set(SPECIAL_TOKENS)
    assert "the quick tank of " in phrases
    assert {types[added[text]] for text in phrases} == {TokenType.USER_DEFINED}
    assert all(tokens[added[text]] == text for text in added)
    assert tokens[count:] == [f"[PAD{count}]", f"[PAD{count + 1}]"]
    assert types[count:] == [TokenType.UNUSED] * 2


def test_a_token_that_looks_special_is_a_control_token_whatever_it_says(folder):
    content = read_tokenizer(folder)
    content["added_tokens"] = [token | {"special": False} for token in content["added_tokens"]]
    count = max(token["id"] for token in content["added_tokens"]) + 1
    tokens, types = token_list(content, count, folder)
    assert types[tokens.index("<|return|>")] == TokenType.CONTROL


def test_merges_may_be_pairs_or_text(base, adapter, tmp_path):
    export_gguf(adapter, base, tmp_path / "pairs")
    other = tmp_path / "base"
    shutil.copytree(base, other)
    content = json.loads((other / "tokenizer.json").read_text())
    assert isinstance(content["model"]["merges"][0], list)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (other / "tokenizer.json").write_text(json.dumps(content))
    export_gguf(adapter, other, tmp_path / "text")
    pairs, text = (read_gguf(tmp_path / n / "model.gguf")[0] for n in ("pairs", "text"))
    assert pairs["tokenizer.ggml.merges"] == text["tokenizer.ggml.merges"]
    assert len(pairs["tokenizer.ggml.merges"]) == len(content["model"]["merges"])


def test_special_ids_and_template_are_there(base, adapter, tmp_path):
    export_gguf(adapter, base, tmp_path / "out")
    keys, tensors = read_gguf(tmp_path / "out" / "model.gguf")
    content = read_tokenizer(base)
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    expected = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-4o",
        "tokenizer.ggml.bos_token_id": ids["<|startoftext|>"],
        "tokenizer.ggml.eos_token_id": ids["<|return|>"],
        "tokenizer.ggml.eot_token_id": ids["<|end|>"],
        "tokenizer.ggml.padding_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.eos_token_ids": [
            ids[f"<|{name}|>"] for name in ("endoftext", "return", "call")
        ],
        "tokenizer.chat_template": chat_template(),
    }
    assert {key: keys[key] for key in expected} == expected
    assert len(keys["tokenizer.ggml.tokens"]) == tensors["token_embd.weight"].shape[0]


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_base_s_own_template_counts_wherever_it_is_kept(place, base, adapter, tmp_path):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    (other / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((other / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if place == "chat_template.jinja":
        (other / place).write_text("{{ messages }}")
    else:
        config["chat_template"] = "{{ messages }}"
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    export_gguf(adapter, other, tmp_path / "out")
    keys, _ = read_gguf(tmp_path / "out" / "model.gguf")
    assert keys["tokenizer.chat_template"] == "{{ messages }}"


def spoilt(base, folder, change):
    shutil.copytree(base, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="Unigram"), "does not split text"),
        (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "does not split text"),
        (lambda c: c.pop("model"), "is no tokenizer"),
        (lambda c: c["model"]["vocab"].update(more=5000), "5000"),
        (
            lambda c: c.update(
                added_tokens=[t for t in c["added_tokens"] if t["content"] != "<|call|>"]
            ),
            "<|call|>",
        ),
    ],
    ids=["model", "pattern", "damaged", "too many", "no call"],
)
def test_another_tokenizer_is_refused_before_anything_is_left(
    change, message, base, adapter, tmp_path
):
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        export_gguf(adapter, spoilt(base, tmp_path / "base", change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_without_tokenizer_is_refused(base, adapter, tmp_path):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        export_gguf(adapter, other, tmp_path / "out")
