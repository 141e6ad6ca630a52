"""SERVING.md for models other than gpt-oss, whose servers use the model's own chat template."""

from __future__ import annotations

from pathlib import Path

from gptoss_tools.core.runs import open_run
from gptoss_tools.export import adapter as adapters

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""All that vLLM's --max-lora-rank takes."""


def rank_in(adapter_dir: Path) -> int:
    """The largest rank of an adapter's matrices."""
    config = adapters.read_config(adapter_dir)
    return max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])


def by_template(base: str, name: str, adapter_dir: Path, format: str) -> str:
    """The lines that serve an export of format `adapter` or `merged`, for people."""
    settings = open_run(adapter_dir).settings
    what = f"{base} with the adapter merged in"
    serve = f"vllm serve . --served-model-name {name}"
    load = 'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto", device_map="auto")'
    if format == "adapter":
        what = f"an adapter to serve unmerged on its base, {base}"
        rank = next((r for r in VLLM_RANKS if r >= rank_in(adapter_dir)), VLLM_RANKS[-1])
        serve = f"vllm serve {base} --enable-lora --lora-modules {name}=. --max-lora-rank {rank}"
        load = load.replace('"."', f'"{base}"') + '\nmodel = PeftModel.from_pretrained(model, ".")'
    date = settings.get("date")
    pinned = f" Where the template prints today's date, training read {date}." if date else ""
    peft = "from peft import PeftModel\n" if format == "adapter" else ""
    return f"""\
# Serving {name}

This folder holds {what}. Run the lines below in it.

Prompts are written by the chat template of the model's tokenizer, as they were in training: send
messages, with the same system message.{pinned}

## vLLM

```sh
{serve}
```

```sh
curl -s http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "..."}}], "temperature": 0}}'
```

## Transformers

```python
{peft}from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base if format == "adapter" else "."}")
{load}
```
"""
