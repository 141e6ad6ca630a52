"""A damaged or foreign GGUF is described in sentences, a sound one passes."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest
from gguf import GGUFReader

from gptoss_tools.export.gguf import export_gguf, verify_gguf


@pytest.fixture(scope="module")
def folder(base, adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("gguf") / "out"
    export_gguf(adapter, base, out)
    return out


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy" / "model.gguf"


def place_of(path, name) -> int:
    (found,) = [tensor for tensor in GGUFReader(path).tensors if tensor.name == name]
    return int(found.data_offset)


def overwrite(path, name, content: bytes, skip: int = 0):
    offset = place_of(path, name) + skip
    with path.open("r+b") as file:
        file.seek(offset)
        assert file.read(len(content)) != content
        file.seek(offset)
        file.write(content)


def test_a_sound_file_has_no_problems(copy, base):
    assert verify_gguf(copy, base) == [] == verify_gguf(copy, None)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("blk.1.attn_q.weight", np.array([0x7FC0], "<u2")),  # a NaN in bfloat16
        ("blk.1.attn_q.bias", np.array([np.inf], "<f4")),
        ("blk.0.ffn_up_exps.weight", np.array([255], "u1")),  # the scale byte of a block
    ],
    ids=["bf16", "f32", "mxfp4"],
)
def test_nan_and_infinity_are_found_in_every_type(name, bad, copy, base):
    overwrite(copy, name, bad.tobytes())
    assert f"{name} holds NaN or infinity" in verify_gguf(copy, None)
    assert f"{name} holds NaN or infinity" in verify_gguf(copy, base)


def test_one_other_nibble_in_an_expert_is_found(copy, base):
    name = "blk.2.ffn_gate_exps.weight"
    offset = place_of(copy, name)
    before = np.fromfile(copy, np.uint8, 20, offset=offset)[19]
    overwrite(copy, name, bytes([before ^ 0x10]), skip=19)
    problems = verify_gguf(copy, base)
    assert len(problems) == 1 and name in problems[0] and "differs" in problems[0]
    assert verify_gguf(copy, None) == []  # a sound value, only not the base's


def test_a_dense_tensor_that_the_adapter_did_not_touch_is_compared_too(copy, base):
    overwrite(copy, "token_embd.weight", np.array([1.5], "<f4").tobytes()[2:])
    assert "token_embd.weight differs" in verify_gguf(copy, base)[0]
    (copy.parent / "export.json").unlink()  # then nobody knows what was changed
    assert verify_gguf(copy, base) == []


def test_a_changed_tensor_is_held_to_the_record(copy, base):
    overwrite(copy, "blk.0.attn_q.weight", np.array([1.5], "<f4").tobytes()[2:])
    (problem,) = verify_gguf(copy, base)
    assert "blk.0.attn_q.weight" in problem and "export.json" in problem


def test_a_file_that_was_cut_off_is_named(copy, base):
    content = copy.read_bytes()
    for size in (0, 3, 100, len(content) // 2, len(content) - 40):
        copy.write_bytes(content[:size])
        (problem,) = verify_gguf(copy, base)
        assert "cannot be read" in problem, size


def test_a_missing_file_is_named(tmp_path):
    assert "cannot be read" in verify_gguf(tmp_path / "model.gguf", None)[0]


def rewritten(path, keep_key=lambda key: True, keep_tensor=lambda name: True, shape=None):
    """The same file without some keys or tensors, as another program might have written it."""
    reader = GGUFReader(path)
    out = path.with_name("other.gguf")
    writer = gguf.GGUFWriter(None, "gpt-oss")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture" and keep_key(name):
            kind, sub = field.types[0], field.types[-1]
            writer.add_key_value(name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        if keep_tensor(tensor.name):
            data = np.array(tensor.data)
            if shape and tensor.name == shape:
                data = data[:1]
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(out)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_missing_keys_and_tensors_are_listed(copy, base):
    assert verify_gguf(rewritten(copy), base) == []
    lacking = rewritten(copy, keep_key=lambda key: "merges" not in key and "eos" not in key)
    assert set(verify_gguf(lacking, base)) == {
        "the key tokenizer.ggml.merges is missing",
        "the key tokenizer.ggml.eos_token_id is missing",
        "the key tokenizer.ggml.eos_token_ids is missing",
    }
    lacking = rewritten(copy, keep_tensor=lambda name: name != "blk.1.attn_sinks.weight")
    assert verify_gguf(lacking, base) == ["the tensor blk.1.attn_sinks.weight is missing"]
    other = rewritten(copy, shape="blk.1.attn_k.weight")
    assert verify_gguf(other, base) == ["blk.1.attn_k.weight has shape (1, 64), not (64, 64)"]


def test_the_gguf_of_another_model_is_told_from_the_base(copy, base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('_layers": 3', '_layers": 2'))
    (problem,) = verify_gguf(copy, other)
    assert "layers=3" in problem and "layers=2" in problem
