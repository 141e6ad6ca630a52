"""llama.cpp loads our files, reads text as our tokenizer does, and answers as transformers does.

Two things are llama.cpp's own, and both are measured here. It rounds activations to eight bits, so
near ties may fall the other way: with the same weights widened to float32 it does not. And it
rounds the ends of yarn's range to whole dimensions, which gpt-oss does not (`truncate`): told to do
so too, transformers gives the same probabilities to four digits or more.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GptOssForCausalLM

from gptoss_tools.core.mxfp4 import PACKED
from gptoss_tools.data.decisions import load_table
from gptoss_tools.export.gguf import export_gguf
from gptoss_tools.export.gguf_lora import export_adapter
from gptoss_tools.export.merge import export_mxfp4
from gptoss_tools.models.layout import token_id
from gptoss_tools.models.loading import load_model, load_tokenizer

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama.cpp is not installed: pip install 'gptoss-tools[gguf-check]'"
)
pytestmark = pytest.mark.slow

ANSWER = "<|channel|>analysis<|message|>Load first.<|end|><|start|>assistant<|channel|>final"
ANSWER += "<|message|>[2]<|return|>"
EXPERTS = {
    "target_modules": ["q_proj"],
    "target_parameters": [f"mlp.experts.{name}" for name in PACKED],
}


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """The trained tiny model with adapters that move its answers, in every form to compare."""
    folder = tmp_path_factory.mktemp("llama")
    for name, size, settings in (
        ("adapter", 0.05, {"target_modules": "all-linear"}),
        ("zero", 0.0, {"target_modules": "all-linear"}),
        ("experts", 0.05, EXPERTS),
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            model = get_peft_model(load_model(tiny), LoraConfig(r=4, lora_alpha=8, **settings))
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=size)
        model.save_pretrained(folder / name)
    export_mxfp4(folder / "adapter", tiny, folder / "mxfp4")
    export_gguf(folder / "adapter", tiny, folder / "merged")
    export_gguf(folder / "adapter", tiny, folder / "exact", dtype="f32")
    export_gguf(folder / "zero", tiny, folder / "base")  # merging nothing leaves the base
    export_adapter(folder / "adapter", tiny, folder / "lora")
    export_adapter(folder / "experts", tiny, folder / "expert-lora")
    for name in ("exact", "base"):
        widen(folder / name / "model.gguf", folder / name / "wide.gguf")
    return folder


def widen(path, out):
    """The same model with every weight in float32, so that llama.cpp rounds no activation."""
    reader, writer = GGUFReader(path), GGUFWriter(None, "gpt-oss")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if tensor.tensor_type != GGMLQuantizationType.F32:
            data = quants.dequantize(data, tensor.tensor_type)
        writer.add_tensor(tensor.name, data)
    writer.write_header_to_file(out)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama(path, lora=None, **options):
    """llama.cpp on one thread, with the logits of every position."""
    return contextlib.closing(
        llama_cpp.Llama(
            str(path),
            lora_path=None if lora is None else str(lora),
            n_ctx=1024,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            verbose=False,
            **options,
        )
    )


@pytest.fixture(scope="module")
def prompts(repository):
    """Shipped prompts."""
    return load_table(repository / "data" / "heldout").prompts[:60]


@pytest.fixture(scope="module")
def probabilities(tiny, prompts):
    """(ours, theirs) of every position of several prompts with an answer, [positions, tokens]."""
    tokenizer = load_tokenizer(tiny)

    def compute(model, engine):
        ours, theirs = [], []
        for prompt in prompts[:6]:
            ids = tokenizer(prompt + ANSWER, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0].double()
            ours.append(torch.softmax(logits, dim=-1).numpy())
            engine.reset()
            engine.eval(ids)
            logits = torch.tensor(np.array(engine.scores[: len(ids)])).double()
            theirs.append(torch.softmax(logits, dim=-1).numpy())
        return np.concatenate(ours), np.concatenate(theirs)

    return compute


def with_adapter(tiny, folder):
    return PeftModel.from_pretrained(load_model(tiny), str(folder))


def assert_near(ours, theirs, within=0.05):
    """Probabilities are close, and only near ties have another likeliest token."""
    assert np.abs(ours - theirs).max() < within
    top_two = np.sort(ours, axis=-1)[:, -2:]
    other = ours.argmax(-1) != theirs.argmax(-1)
    assert (top_two[other, 1] - top_two[other, 0]).max(initial=0) < within
    assert other.mean() < 0.01


def piece(vocabulary, token) -> bytes:
    """The text of a token; the package's own `detokenize` cuts tokens of more than 32 bytes."""
    buffer = (ctypes.c_char * 512)()
    size = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, 512, 0, True)
    assert size > 0
    return buffer.raw[:size]


def test_text_becomes_our_tokens_and_comes_back(files, tiny, prompts):
    tokenizer = load_tokenizer(tiny)
    texts = [
        *prompts,
        *(prompt + ANSWER for prompt in prompts[:3]),
        " a",
        "I've 12345\u00a0of them",
    ]
    texts += [
        "\u00dcberlast 3,5 kW \u2014 \u6599\u91d1 \u21167\r\n\t x  y\n\n",
        "\U0001f642\U0001f44d\U0001f3fd don't",
    ]
    with llama(files / "merged" / "model.gguf", vocab_only=True) as engine:
        vocabulary = llama_cpp.llama_model_get_vocab(engine.model)
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert engine.tokenize(text.encode(), add_bos=False, special=True) == ids, text
            assert engine.tokenize(text.encode(), special=True) == ids, "a BOS was added"
            assert b"".join(piece(vocabulary, token) for token in ids).decode() == text


def test_answers_end_where_gpt_oss_s_end(files, tiny):
    tokenizer = load_tokenizer(tiny)
    with llama(files / "merged" / "model.gguf", vocab_only=True) as engine:
        vocabulary = llama_cpp.llama_model_get_vocab(engine.model)
        ends = {
            name
            for name in ("return", "call", "endoftext", "end", "start", "message", "channel")
            if llama_cpp.llama_vocab_is_eog(vocabulary, token_id(tokenizer, f"<|{name}|>"))
        }
        assert ends == {"return", "call", "endoftext"}
        assert llama_cpp.llama_vocab_bos(vocabulary) == token_id(tokenizer, "<|startoftext|>")
        assert llama_cpp.llama_vocab_eos(vocabulary) == token_id(tokenizer, "<|return|>")
        assert llama_cpp.llama_vocab_eot(vocabulary) == token_id(tokenizer, "<|end|>")


def test_the_merged_gguf_answers_as_the_merged_checkpoint(files, probabilities):
    with llama(files / "merged" / "model.gguf") as engine:
        assert_near(*probabilities(load_model(files / "mxfp4"), engine))


def test_float32_attention_answers_as_base_and_adapter(files, tiny, probabilities):
    with llama(files / "exact" / "model.gguf") as engine:
        assert_near(*probabilities(with_adapter(tiny, files / "adapter"), engine))


def test_the_gguf_lora_on_the_base_answers_as_base_and_adapter(files, tiny, probabilities):
    model = with_adapter(tiny, files / "adapter")
    with llama(files / "base" / "model.gguf", files / "lora" / "adapter.gguf") as engine:
        assert_near(*probabilities(model, engine))


FLOAT32_CACHE = {"type_k": 0, "type_v": 0}


@pytest.mark.parametrize("lora", [None, "lora"], ids=["merged", "lora"])
def test_without_its_rounding_the_likeliest_token_is_the_same_everywhere(
    lora, files, tiny, probabilities
):
    path = files / ("base" if lora else "exact") / "wide.gguf"
    with llama(path, lora and files / lora / "adapter.gguf", **FLOAT32_CACHE) as engine:
        ours, theirs = probabilities(with_adapter(tiny, files / "adapter"), engine)
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()
    assert np.abs(ours - theirs).max() < 0.01


@pytest.mark.parametrize(
    ("gguf", "lora", "adapter"),
    [
        ("exact", None, "adapter"),
        ("base", None, None),
        ("base", "lora", "adapter"),
        ("base", "expert-lora", "experts"),
    ],
    ids=["merged", "base", "lora", "lora on experts"],
)
def test_with_the_same_rope_all_probabilities_are_the_same(
    gguf, lora, adapter, files, tiny, probabilities
):
    plain = load_model(tiny)
    config = copy.deepcopy(plain.config)
    assert config.rope_parameters["truncate"] is False
    config.rope_parameters["truncate"] = True
    model = GptOssForCausalLM(config).float()
    model.load_state_dict(plain.state_dict())
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(files / adapter))
    wide, lora = files / gguf / "wide.gguf", lora and files / lora / "adapter.gguf"
    with llama(wide, lora, **FLOAT32_CACHE) as engine:
        ours, theirs = probabilities(model.eval(), engine)
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()
    assert np.abs(ours - theirs).max() < 1e-4
    if adapter is not None:  # the adapter is what was compared
        with llama(files / "base" / "wide.gguf", **FLOAT32_CACHE) as engine:
            _, without = probabilities(model, engine)
        assert np.abs(ours - without).max() > 0.3
