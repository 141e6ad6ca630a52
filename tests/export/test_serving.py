"""SERVING.md holds lines that serve this very export, and nothing of this machine."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from peft import PeftModel

from gptoss_tools.chat.harmony import render
from gptoss_tools.core.publish import write_json
from gptoss_tools.export.gguf import export_gguf
from gptoss_tools.export.gguf_lora import export_adapter
from gptoss_tools.export.merge import export_mxfp4
from gptoss_tools.export.serving import write_serving
from gptoss_tools.models.loading import load_model, load_tokenizer

PROMPT = render([{"role": "user", "content": "hour 3"}], date="2026-01-01")


def written(folder) -> str:
    return (folder / "SERVING.md").read_text(encoding="utf-8")


def sections(folder) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", written(folder), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def serve(adapter, base, folder, format, base_name="openai/gpt-oss-20b"):
    folder.mkdir()
    write_serving(folder, format=format, base_name=base_name, adapter_dir=adapter, base_dir=base)
    return folder


@pytest.mark.parametrize(
    ("format", "programs"),
    [
        ("mxfp4", ["vLLM", "Transformers"]),
        ("bf16", ["vLLM", "Transformers"]),
        ("gguf", ["llama.cpp", "Ollama"]),
        ("adapter", ["vLLM", "Transformers", "llama.cpp"]),
    ],
)
def test_only_programs_that_read_the_format_are_named(format, programs, base, adapter, tmp_path):
    folder = serve(adapter, base, tmp_path / "out", format)
    assert list(sections(folder)) == ["Prompts", *programs]
    assert str(tmp_path.parent) not in written(folder) and "/tmp" not in written(folder)


def test_every_shell_line_can_be_read_by_a_shell(base, adapter, tmp_path):
    count = 0
    for format in ("mxfp4", "gguf", "adapter"):
        for text in blocks(written(serve(adapter, base, tmp_path / format, format)), "sh"):
            lines = text.replace("\\\n", " ").replace("|\n", "| ").splitlines()
            for line in lines:
                words = shlex.split(line)
                assert words[0] in ("vllm", "llama-server", "ollama", "jq"), line
                count += 1
                if words[0] == "jq":  # jq's own little language, for these objects nearly JSON
                    program = words[2]
                    program = program.replace('rtrimstr("\\n")', '"."')
                    assert json.loads(re.sub(r"(\w+):", r'"\1":', program))
    assert count == 2 + (2 + 3) + 2  # vLLM; llama.cpp and Ollama; vLLM


@pytest.mark.parametrize(("r", "allowed"), [(4, 8), (8, 8), (9, 16), (65, 128)])
def test_vllm_gets_a_rank_it_takes(r, allowed, base, make_adapter, tmp_path):
    made = make_adapter(tmp_path / "run", r=r, lora_alpha=8)
    (serving, _) = blocks(sections(serve(made, base, tmp_path / "out", "adapter"))["vLLM"], "sh")
    words = shlex.split(serving)
    assert words[:3] == ["vllm", "serve", "openai/gpt-oss-20b"]
    assert words[words.index("--lora-modules") + 1] == "run=."
    assert int(words[words.index("--max-lora-rank") + 1]) == allowed
    assert "--enable-lora" in words


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]},
        {"rank_pattern": {"q_proj": 600}},
    ],
    ids=str,
)
def test_adapters_that_vllm_cannot_serve_are_told(settings, base, make_adapter, tmp_path):
    made = make_adapter(tmp_path / "run", **settings)
    text = sections(serve(made, base, tmp_path / "out", "adapter"))["vLLM"]
    assert "does not serve this adapter" in text and "```" not in text


def test_date_level_and_lengths_are_those_of_the_run(base, make_adapter, tmp_path):
    made = make_adapter(tmp_path / "first" / "adapter")
    settings = {"date": "2026-03-03", "reasoning_effort": "low"}
    settings |= {"max_prompt_length": 500, "max_completion_length": 24}
    write_json(tmp_path / "first" / "config.json", {"settings": settings})
    parts = sections(serve(made, base, tmp_path / "out", "bf16"))
    assert "    Current date: 2026-03-03" in parts["Prompts"]
    assert "VLLM_SYSTEM_START_DATE=2026-03-03" in parts["vLLM"]
    assert '"reasoning_effort": "low"' in parts["vLLM"]
    assert "--max-model-len 1024" in parts["vLLM"] and "max_tokens: 24" in parts["vLLM"]
    assert "--served-model-name first" in parts["vLLM"]
    gguf = sections(serve(made, base, tmp_path / "gguf", "gguf"))
    assert "-c 1024" in gguf["llama.cpp"] and "ollama run first" in gguf["Ollama"]


def test_without_a_pinned_date_nothing_pins_one(base, adapter, tmp_path):
    text = written(serve(adapter, base, tmp_path / "out", "mxfp4"))
    assert "VLLM_SYSTEM_START_DATE" not in text and "(today, as YYYY-MM-DD)" in text


def test_exports_hold_it(base, adapter, tmp_path):
    for name, export in (("gguf", export_gguf), ("adapter", export_adapter)):
        export(adapter, base, tmp_path / name)
        assert "Run the lines below in it" in written(tmp_path / name)
    assert "--lora adapter.gguf" in written(tmp_path / "adapter")
    assert "`base` stands for the folder of the base model" in written(tmp_path / "adapter")


@pytest.mark.parametrize("export", [export_mxfp4, export_adapter])
def test_the_python_lines_run_and_give_the_model_s_answer(
    export, base, adapter, tmp_path, monkeypatch, capsys
):
    export(adapter, base, tmp_path / "out")
    format = {"export_mxfp4": "mxfp4", "export_adapter": "adapter"}[export.__name__]
    folder = serve(adapter, base, tmp_path / "serving", format, base_name="base")
    (code,) = blocks(sections(folder)["Transformers"], "python")
    monkeypatch.chdir(tmp_path / "out")
    (tmp_path / "out" / "base").symlink_to(base)
    (tmp_path / "out" / "PROMPT.txt").write_text(PROMPT + "\n")
    assert "max_new_tokens=4000" in code
    exec(code.replace("max_new_tokens=4000", "max_new_tokens=5"), {})
    said = capsys.readouterr().out

    tokenizer = load_tokenizer(base)
    ids = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")
    if format == "adapter":
        model = PeftModel.from_pretrained(load_model(base, dtype="bfloat16"), str(adapter))
    else:
        model = load_model(tmp_path / "out", dtype="bfloat16")
    answer = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert said == tokenizer.decode(answer[0, ids.input_ids.shape[1] :]) + "\n"
