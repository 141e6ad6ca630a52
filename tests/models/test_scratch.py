"""New models and tokenizers for plain text: sizes, bits, and that all of it can be read back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import layer_norm
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptoss_tools.errors import ConfigError
from gptoss_tools.models.bigram import BigramConfig, BigramLanguageModel
from gptoss_tools.models.sampling import write_sample
from gptoss_tools.models.scratch import count_parameters, new_config, new_model, training_bytes
from gptoss_tools.models.text_tokenizers import (
    UNKNOWN,
    bpe_size,
    encode,
    new_tokenizer,
    prompt_ids,
    unknown_count,
)
from gptoss_tools.settings import NewModelSettings

TEXT = "the cat sat on the mat.\nthe dog ran.\n" * 4
KINDS = ("bigram", "gpt2", "gpt-oss")
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "block_size": 8}


def small(kind: str, **changes):
    sizes = NewModelSettings.model_validate({"model_type": kind, **SIZES, **changes})
    return new_config(sizes, new_tokenizer("character", [TEXT]), 0.01)


def test_a_character_is_a_token_in_the_order_of_the_alphabet_and_others_are_unknown():
    tokenizer = new_tokenizer("character", ["cab\nba"])
    ids = encode(tokenizer, ["abc\nz"])
    # sorted: newline 0, a 1, b 2, c 3, and the mark for all others 4
    assert ids.tolist() == [1, 2, 3, 0, 4] and ids.dtype == np.int32
    assert tokenizer.decode(ids) == f"abc\n{UNKNOWN}"
    assert unknown_count(tokenizer, ids) == 1
    assert prompt_ids(tokenizer, "") == [0] and prompt_ids(tokenizer, "ca") == [3, 1]
    # without a line in the text there is no token for one
    assert prompt_ids(new_tokenizer("character", ["cab"]), "") == [0]


PAIRS = new_tokenizer("bpe", [TEXT, "more"])


@given(st.text())
def test_any_text_survives_learned_pairs(text):
    ids = PAIRS(text, add_special_tokens=False).input_ids
    assert PAIRS.decode(ids, skip_special_tokens=False) == text


def test_texts_are_parted_by_the_end_token_or_an_empty_line_and_read_in_one_piece():
    end = PAIRS.eos_token_id
    ids = encode(PAIRS, [TEXT, "the end"]).tolist()
    assert ids == [end, *PAIRS(TEXT).input_ids, end, *PAIRS("the end").input_ids]
    assert prompt_ids(PAIRS, "") == [end]
    single = new_tokenizer("character", ["a\nb"])
    assert single.eos_token_id is None
    assert single.decode(encode(single, ["a", "b"])) == "a\n\nb"


@pytest.mark.parametrize(
    ("characters", "length", "size"),
    [
        (10, 50_000, 512),  # 4 * 10 is less than 512
        (200, 50_000, 800),  # 4 * 200
        (300, 50_000, 1000),  # 4 * 300, at most 1000
        (10, 125_000, 512),  # 500 + 200 * log2(0.125) = -100: the script gave a negative size
        (10, 4_000_000, 900),  # 500 + 200 * 2
        (10, 5_000_000, 1000),  # 500 + 200 * 2.32 = 964, in hundreds
    ],
)
def test_a_longer_text_gets_more_pairs(characters, length, size):
    alphabet = [chr(32 + n) if n < 96 else chr(400 + n) for n in range(characters)]
    text = "".join(alphabet)
    text += "a" * (length - len(text.encode()))
    assert bpe_size([text]) == size


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ConfigError, match="vocab_size is 200"):
        new_tokenizer("bpe", [TEXT], 200)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_is_the_same_for_the_same_seed_and_can_be_read_back(kind, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model, again = new_model(small(kind), 5).eval(), new_model(small(kind), 5).eval()
    assert torch.equal(torch.rand(2), expected)
    ids = torch.arange(16).view(2, 8)
    logits = model(ids).logits
    assert torch.equal(logits, again(ids).logits)
    assert count_parameters(small(kind)) == model.num_parameters()
    model.save_pretrained(tmp_path, save_original_format=False)
    tokenizer = new_tokenizer("character", [TEXT])
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, logits)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read(TEXT).input_ids == tokenizer(TEXT).input_ids and read.decode([1]) == " "


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_longer_than_the_window_and_the_same_for_the_same_seed(kind):
    model, tokenizer = new_model(small(kind), 5), new_tokenizer("character", [TEXT])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    options = {"max_new_tokens": 30, "window": 8}
    sample = write_sample(model, tokenizer, "the cat sat on", seed=1, **options)
    assert torch.equal(torch.rand(2), expected)
    # 14 characters, then 30 more, of which unknown ones are not shown
    assert sample.startswith("the cat sat on") and 30 < len(sample) <= 44
    assert sample == write_sample(model, tokenizer, "the cat sat on", seed=1, **options)
    assert sample != write_sample(model, tokenizer, "the cat sat on", seed=2, **options)
    assert model.training


def test_the_bigram_has_the_weights_of_the_lectures_decoder():
    config = BigramConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, max_position_embeddings=4
    )
    # 10*8 + 4*8 embeddings; 2 norms of 16; q, k, v of 64; proj 64+8; up 8*32+32; down 32*8+8;
    # last norm 16; head 8*10+10
    block = 2 * 16 + 3 * 64 + 72 + 288 + 264
    assert BigramLanguageModel(config).num_parameters() == 80 + 32 + block + 16 + 90


def test_the_bigram_computes_what_the_lecture_writes_out():
    torch.manual_seed(0)
    model = new_model(small("bigram", num_hidden_layers=1), 5).eval()
    ids = torch.randint(0, 10, (1, 6))
    w = model.state_dict()
    x = w["token_embedding.weight"][ids[0]] + w["position_embedding.weight"][:6]
    b = {name.removeprefix("blocks.0."): value for name, value in w.items() if "blocks.0" in name}
    normed = layer_norm(x, (8,), b["attention_norm.weight"], b["attention_norm.bias"])
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (normed @ b[f"{n}.weight"][rows].T for n in ("query", "key", "value"))
        scores = (q @ k.T / math.sqrt(4)).masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v)
    x = x + torch.cat(heads, 1) @ b["proj.weight"].T + b["proj.bias"]
    normed = layer_norm(x, (8,), b["ffn_norm.weight"], b["ffn_norm.bias"])
    inner = (normed @ b["ffn_up.weight"].T + b["ffn_up.bias"]).relu()
    x = x + inner @ b["ffn_down.weight"].T + b["ffn_down.bias"]
    x = layer_norm(x, (8,), w["norm.weight"], w["norm.bias"])
    wanted = x @ w["lm_head.weight"].T + w["lm_head.bias"]
    torch.testing.assert_close(model(ids).logits[0], wanted)


def test_the_bigrams_padding_changes_nothing_and_its_window_slides():
    model = new_model(small("bigram"), 5).eval()
    ids = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(ids, (2, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (2, 0))
    shown = model(padded, attention_mask=mask).logits[:, 2:]
    torch.testing.assert_close(shown, model(ids).logits)
    own = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    written = model.generate(ids, max_new_tokens=12, do_sample=False, **own)
    for _ in range(12):
        newest = model(ids[:, -8:]).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, newest], 1)
    assert torch.equal(written, ids)


def test_training_takes_weights_gradients_moments_and_activations():
    config = small("gpt2", block_size=4)
    count = count_parameters(config)
    # 2 layers, 34 * 8 + 2 scores * 2 heads * 4 places; 3 rows of logits of 16 tokens; 4 bytes each
    per_token = 2 * (34 * 8 + 2 * 2 * 4) + 3 * config.vocab_size
    needed = training_bytes(config, rows=3, tokens=4)
    assert needed == 16 * count + 4 * 3 * 4 * per_token
    assert needed - training_bytes(config, rows=3, tokens=4, trainable=0) == 12 * count


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden_size": 10, "num_attention_heads": 4}, "does not divide into 4 heads"),
        ({"num_key_value_heads": 3}, "do not divide over 3"),
        ({"model_type": "gpt-oss", "hidden_size": 12, "num_attention_heads": 4}, "must be even"),
        ({"num_experts_per_tok": 5}, "more than num_local_experts"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        NewModelSettings.model_validate(sizes)
