"""What it costs to train with packed experts, and what it saves, beside the dequantised model.

    python benchmarks/packed.py [--layers 3] [--hidden 768] [--tokens 256] [--out DIR]

A synthetic checkpoint with the 20b's 32 experts, 4 per token, and narrower layers; LoRA on the
attention, float32, one thread, gradient checkpointing. Each way runs in a process of its own: it
loads the model and takes the median of --rounds forward and backward passes. Prints a Markdown
table, and with --out writes packed.json. The dequantised float32 model is 7.5 times its file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measuring import machine, run, size_of

WAYS = (
    "dequantised",
    "packed",
    "packed, unpacked again for the backward pass",
    "packed, all experts at a time",
)


def write_model(folder: Path, layers: int, hidden: int) -> None:
    """Write a checkpoint of one file, random numbers in the published layout."""
    from make_checkpoint import config_of, tensor_table, write_shard
    from synthetic_tokenizer import write_tokenizer

    from gptoss_tools.models.layout import published_config

    config = config_of("20b", layers)
    config.hidden_size = config.intermediate_size = hidden
    config.num_attention_heads, config.num_key_value_heads = hidden // 64, hidden // 64
    config.vocab_size = len(write_tokenizer(folder, full=False))
    config.pad_token_id = config.eos_token_id = 0
    write_shard(folder / "model.safetensors", tensor_table(config), seed=0)
    (folder / "config.json").write_text(json.dumps(published_config(config, 0)), encoding="utf-8")


def measure(folder: Path, way: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Load in one way and train on random tokens; seconds, the loss, and a gradient's length."""
    import torch
    from peft import get_peft_model

    from gptoss_tools.models.loading import load_model
    from gptoss_tools.models.lora import lora_config
    from gptoss_tools.models.packed import load_packed

    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    if way == WAYS[0]:
        base: Any = load_model(folder, device="cpu")
    else:
        chunk = 32 if way == WAYS[3] else 1
        base = load_packed(folder, dtype=torch.float32, device="cpu", chunk=chunk)
        if way == WAYS[2]:
            base.model.layers[0].mlp.experts.kept.room = lambda *_: None  # all layers share it
    loading = time.perf_counter() - start
    model = get_peft_model(base, lora_config(r=8))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, base.config.vocab_size, (1, tokens))
    seconds, loss = [], 0.0
    for _ in range(rounds + 1):  # the first one warms up
        model.zero_grad()
        start = time.process_time()  # one thread: what others do on this machine counts less
        out = model.train()(ids, labels=ids, output_router_logits=False)
        out.loss.backward()
        seconds.append(time.process_time() - start)
        loss = float(out.loss)
    learned = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    gradient = float(torch.stack(learned).norm())
    return {"loading": loading, "seconds": median(seconds[1:]), "loss": loss, "gradient": gradient}


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements in Markdown, the dequantised model's of the same tokens as 1."""
    lines = [
        "| tokens | experts | forward, backward | beside dequantised | peak RSS | same numbers |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        dense = next(r for r in rows if r["tokens"] == row["tokens"] and r["way"] == WAYS[0])
        same = all(row[key] == dense[key] for key in ("loss", "gradient"))
        lines.append(
            f"| {row['tokens']} | {row['way']} | {row['seconds']:.2f} s "
            f"| {row['seconds'] / dense['seconds']:.2f} x | {row['peak_rss'] / 1e9:.2f} GB "
            f"| {'yes' if same else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_model(options.write, options.layers, options.hidden)
        return
    if options.child:
        folder, way, tokens = options.child
        found = measure(Path(folder), way, int(tokens), options.rounds)
        print("\n" + json.dumps(found))
        return
    sizes = ["--layers", str(options.layers), "--hidden", str(options.hidden)]
    again = [sys.executable, __file__, *sizes, "--rounds", str(options.rounds)]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([*again, "--write", folder])
        size = size_of(folder / "model.safetensors")
        for tokens in options.tokens:
            for way in WAYS:
                child = run([*again, "--child", folder, way, str(tokens)])
                found = json.loads(child.said.splitlines()[-1])
                rows.append({"way": way, "tokens": tokens, "peak_rss": child.peak_rss} | found)
        facts = machine(folder)
    print(f"{options.layers} layers of width {options.hidden}, a file of {size / 1e9:.2f} GB\n")
    print(table(rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"machine": facts, "file": size, "layers": options.layers, "rows": rows}
        path = options.out / "packed.json"
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
