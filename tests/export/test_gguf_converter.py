"""Our GGUF and the one that llama.cpp's own converter writes, tensor by tensor and byte by byte.

The converter comes with llama.cpp's sources, which the installed package leaves out: name a folder
that holds `convert_hf_to_gguf.py` in GPTOSS_LLAMA_CPP. The sources inside llama-cpp-python's source
package will do: `pip download --no-deps --no-binary :all: llama-cpp-python`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_reading import read_gguf

from gptoss_tools.export.gguf import export_gguf
from gptoss_tools.export.gguf_lora import export_adapter
from gptoss_tools.export.merge import export_mxfp4

NAMED = os.environ.get("GPTOSS_LLAMA_CPP")  # every test runs without our variables

OURS_ALONE = {
    # llama.cpp guesses the end of a message from the tokens' texts, in no fixed order.
    "tokenizer.ggml.eot_token_id",
    # Ollama reads all three ends of an answer here.
    "tokenizer.ggml.eos_token_ids",
    # Drawing as training drew.
    *(f"general.sampling.{k}" for k in ("temp", "top_p", "top_k", "min_p", "penalty_repeat")),
}
NAMED_BY_FOLDER = {"general.name"}  # theirs in title case
GUESSED_FROM_FOLDERS = ("general.base_model.", "general.tags", "general.name")

# Their script knows tokenizers by a hash of what they do with a text; the tiny one is told.
RUN = """
import runpy, sys
root, script = sys.argv[1:3]
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-4o"
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(f"{root}/{script}", run_name="__main__")
"""


@pytest.fixture(scope="module")
def convert():
    """Run one of llama.cpp's converters."""
    spec = importlib.util.find_spec("llama_cpp")
    beside = Path(spec.origin).parents[1] / "vendor" / "llama.cpp" if spec and spec.origin else None
    places = [Path(NAMED)] if NAMED else [beside] if beside else []
    for place in places:
        if (place / "convert_hf_to_gguf.py").is_file() and (place / "conversion").is_dir():
            break
    else:
        pytest.skip("llama.cpp's converter is not at hand: set GPTOSS_LLAMA_CPP to its sources")

    def run(script, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(place), script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "router"]}],
    ids=["attention", "more"],
)
def test_every_tensor_and_key_is_the_converter_s(settings, convert, base, make_adapter, tmp_path):
    made = make_adapter(tmp_path / "adapter", **settings)
    export_mxfp4(made, base, tmp_path / "merged")
    convert("convert_hf_to_gguf.py", tmp_path / "merged", "--outfile", tmp_path / "theirs.gguf")
    export_gguf(made, base, tmp_path / "merged", overwrite=True)
    our_keys, ours = read_gguf(tmp_path / "merged" / "model.gguf")
    their_keys, theirs = read_gguf(tmp_path / "theirs.gguf")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name] == tensor, name  # type, shape and bytes
    assert our_keys.keys() - their_keys.keys() == OURS_ALONE
    assert their_keys.keys() <= our_keys.keys()
    for key in their_keys.keys() - NAMED_BY_FOLDER:
        assert our_keys[key] == their_keys[key], key
    assert our_keys["general.name"].lower() == their_keys["general.name"].lower()


@pytest.mark.slow
def test_the_gguf_lora_is_the_converter_s(convert, base, adapter, tmp_path):
    export_adapter(adapter, base, tmp_path / "out")
    theirs = tmp_path / "theirs.gguf"
    convert("convert_lora_to_gguf.py", adapter, "--base", base, "--outfile", theirs)
    our_keys, ours = read_gguf(tmp_path / "out" / "adapter.gguf")
    their_keys, theirs = read_gguf(theirs)
    assert ours == theirs
    for key, value in their_keys.items():
        if not key.startswith(GUESSED_FROM_FOLDERS):
            assert our_keys[key] == value, key
    assert our_keys.keys() <= their_keys.keys()
