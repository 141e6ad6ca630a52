"""SERVING.md: the exact lines that serve this very export, in the programs that read its format.

All names are relative to the folder, which may be moved. Where a program would build another prompt
than training did, the file says how to keep it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from gptoss_tools.core.publish import write_text
from gptoss_tools.export import adapter as adapters
from gptoss_tools.export.modelfile import served_name
from gptoss_tools.export.prompt_form import TODAY, PromptForm, training_form
from gptoss_tools.export.safetensors_io import read_header
from gptoss_tools.export.serving_template import VLLM_RANKS, by_template, rank_in
from gptoss_tools.models.names import is_other_family

NAME = "SERVING.md"
ADAPTER = "adapter.gguf"
Format = Literal["mxfp4", "bf16", "merged", "gguf", "adapter"]

_ATTENTION = re.compile(r".*\.self_attn\.[qkvo]_proj\.lora_[AB]\.weight")


class _Export(NamedTuple):
    format: Format
    name: str
    base: str
    form: PromptForm
    adapter_dir: Path
    folder: Path

    @property
    def answer(self) -> int:
        return self.form.settings["max_completion_length"]


def write_serving(
    folder: Path, *, format: Format, base_name: str, adapter_dir: Path, base_dir: Path
) -> None:
    """Write SERVING.md into `folder`, which holds the rest of the export already."""
    base = base_name or base_dir.resolve().name
    if is_other_family(base_dir):
        write_text(folder / NAME, by_template(base, served_name(adapter_dir), adapter_dir, format))
        return
    form = training_form(adapter_dir)
    export = _Export(format, served_name(adapter_dir), base, form, adapter_dir, folder)
    sections = [_introduction(export), _prompts(form)]
    sections += [write(export) for write in _WRITERS[format]]
    write_text(folder / NAME, "\n\n".join(sections) + "\n")


def _introduction(export: _Export) -> str:
    what = {
        "mxfp4": f"{export.base} with the adapter merged in, its experts still packed in MXFP4",
        "bf16": f"{export.base} with the adapter merged in, all weights in bfloat16",
        "gguf": f"{export.base} with the adapter merged in, as one GGUF",
        "adapter": f"an adapter to serve unmerged on its base, {export.base}",
    }[export.format]
    text = f"# Serving {export.name}\n\nThis folder holds {what}. Run the lines below in it."
    if export.format == "adapter" and "/" not in export.base:
        text += f" `{export.base}` stands for the folder of the base model."
    return text


def _prompts(form: PromptForm) -> str:
    lines = [
        "## Prompts",
        "",
        "Ask in the form in which the model was trained. The system message of training:",
        "",
        *_quoted(form.system.replace(TODAY, "(today, as YYYY-MM-DD)")),
        "",
    ]
    if form.developer is not None:
        lines += [
            "The developer message, which many programs call the system message:",
            "",
            *_quoted(form.developer),
            "",
        ]
    lines += [*form.notes, ""] if form.notes else []
    lines += [
        "`PROMPT.txt` below is such a prompt as Harmony text, from `<|start|>system` to the last",
        "`<|start|>assistant`, as in the tables that `gptoss convert-harmony` writes: it reaches",
        "the model unchanged. The answer stands behind `<|channel|>final<|message|>`.",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.splitlines()]


def _vllm(export: _Export) -> str:
    form = export.form
    if export.format != "adapter":
        serve = f"vllm serve . --served-model-name {export.name} --max-model-len {form.context}"
    elif reason := _no_lora_in_vllm(export.adapter_dir):
        return f"## vLLM\n\nvLLM does not serve this adapter: {reason}. Export it merged instead."
    else:
        rank = min(r for r in VLLM_RANKS if r >= rank_in(export.adapter_dir))
        serve = (
            f"vllm serve {export.base} --enable-lora --lora-modules {export.name}=. "
            f"--max-lora-rank {rank} --max-model-len {form.context}"
        )
    body = f'model: "{export.name}", prompt: rtrimstr("\\n"), max_tokens: {export.answer}'
    chat = "the reasoning level goes with each request, as "
    chat += f'`"reasoning_effort": "{form.effort}"`'
    if form.date is not None:
        chat += f", and the date with the server, as `VLLM_SYSTEM_START_DATE={form.date} vllm serve"
        chat += " ...`"
    return f"""\
## vLLM

```sh
{serve}
```

```sh
jq -Rs '{{{body}, temperature: 0, skip_special_tokens: false}}' PROMPT.txt |
    curl -s http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d @-
```

With `/v1/chat/completions`, {chat}."""


def _transformers(export: _Export) -> str:
    load = 'model = AutoModelForCausalLM.from_pretrained("{}", dtype="auto", device_map="auto")'
    lines = ["from pathlib import Path", ""]
    if export.format == "adapter":
        lines += [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{export.base}")',
            load.format(export.base),
            'model = PeftModel.from_pretrained(model, ".")',
        ]
    else:
        lines += [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            load.format("."),
        ]
    lines += [
        'prompt = Path("PROMPT.txt").read_text().strip()',
        'ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)',
        f"answer = model.generate(**ids, max_new_tokens={export.answer}, do_sample=False)",
        "print(tokenizer.decode(answer[0, ids.input_ids.shape[1] :]))",
    ]
    return "\n".join(["## Transformers", "", "```python", *lines, "```"])


def _llama_cpp(export: _Export) -> str:
    heading = "## llama.cpp\n\n"
    model = "-m model.gguf"
    if export.format == "adapter":
        if not (export.folder / ADAPTER).is_file():
            return heading + f"There is no {ADAPTER} here: see `warnings` in export.json."
        model = f"-m BASE.gguf --lora {ADAPTER}"
        heading += (
            f"`BASE.gguf` is {export.base} as GGUF, as llama.cpp's `convert_hf_to_gguf.py` makes "
            "it.\n\n"
        )
    date = ", which writes today's date" if export.form.date is not None else ""
    return f"""\
{heading}```sh
llama-server {model} -c {export.form.context} --jinja \\
    --chat-template-kwargs '{json.dumps({"reasoning_effort": export.form.effort})}'
```

```sh
jq -Rs '{{prompt: rtrimstr("\\n"), n_predict: {export.answer}, temperature: 0}}' PROMPT.txt |
    curl -s http://localhost:8080/completion -H 'Content-Type: application/json' -d @-
```

`/v1/chat/completions` uses the chat template in the GGUF{date}. llama.cpp rounds activations to
eight bits, so that near ties may fall otherwise than in training."""


def _ollama(export: _Export) -> str:
    return f"""\
## Ollama

```sh
ollama create {export.name} -f Modelfile
ollama run {export.name}
```

The Modelfile holds template, parameters and, where training had one for all prompts, the system
text. Harmony text goes in unchanged with `raw`:

```sh
jq -Rs '{{model: "{export.name}", prompt: rtrimstr("\\n"), raw: true, stream: false}}' PROMPT.txt |
    curl -s http://localhost:11434/api/generate -d @-
```"""


def _no_lora_in_vllm(adapter_dir: Path) -> str | None:
    """Why vLLM cannot serve an adapter, None if it can: LoRA on attention alone, without extras."""
    config = adapters.read_config(adapter_dir)
    if config.get("use_dora"):
        return "it is DoRA"
    if rank_in(adapter_dir) > VLLM_RANKS[-1]:
        return f"its rank is above {VLLM_RANKS[-1]}"
    others = [n for n in read_header(adapter_dir / adapters.WEIGHTS) if not _ATTENTION.fullmatch(n)]
    return f"it holds {others[0]}" if others else None


_WRITERS: dict[Format, tuple[Callable[[_Export], str], ...]] = {
    "mxfp4": (_vllm, _transformers),
    "bf16": (_vllm, _transformers),
    "gguf": (_llama_cpp, _ollama),
    "adapter": (_vllm, _transformers, _llama_cpp),
}
