"""What it costs to train with packed experts, and what it saves, beside the dequantised model.

    python benchmarks/packed.py [--layers 3] [--hidden 768] [--tokens 256] [--dtype float32]
                                [--out FILE]

A synthetic checkpoint with the 20b's 32 experts, 4 per token, and narrower layers (--hidden 2880:
the 20b's own, few of them); LoRA on the attention, one thread, gradient checkpointing. Each way
takes its turn --rounds times; the median of a forward and backward pass counts, in seconds of the
processor. Memory is measured in processes of their own: the largest while one trains, after
loading. Prints a Markdown table, and with --out writes it as JSON.
"""

from __future__ import annotations

import argparse
import gc
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
)


def write_model(folder: Path, layers: int, hidden: int) -> None:
    """Write a checkpoint of one file, random numbers in the published layout."""
    from make_checkpoint import config_of, tensor_table, write_shard
    from synthetic_tokenizer import write_tokenizer

    from gptoss_tools.models.layout import published_config

    config = config_of("20b", layers)
    if hidden != config.hidden_size:
        config.hidden_size = config.intermediate_size = hidden
        config.num_attention_heads, config.num_key_value_heads = hidden // 64, hidden // 64
    config.vocab_size = len(write_tokenizer(folder, full=False))
    config.pad_token_id = config.eos_token_id = 0
    write_shard(folder / "model.safetensors", tensor_table(config), seed=0)
    (folder / "config.json").write_text(json.dumps(published_config(config, 0)), encoding="utf-8")


def load(folder: Path, way: str, dtype: str) -> Any:
    """The model held in one way, with LoRA and gradient checkpointing."""
    import torch
    from peft import get_peft_model

    from gptoss_tools.models.loading import load_model
    from gptoss_tools.models.lora import lora_config

    how = "dequantized" if way == WAYS[0] else "packed"
    base: Any = load_model(folder, device="cpu", dtype=dtype, experts=how)
    if way == WAYS[2]:
        base.model.layers[0].mlp.experts.kept.room = lambda *_: None  # all layers share it
    torch.manual_seed(0)
    model = get_peft_model(base, lora_config(r=8))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def measure(folder: Path, ways: list[str], tokens: int, rounds: int, dtype: str) -> list[Any]:
    """Train in turn on the same random tokens: seconds, bytes, the loss, a gradient's length."""
    import torch

    torch.set_num_threads(1)
    models = [load(folder, way, dtype) for way in ways]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the largest size so far is forgotten
    ids = torch.randint(0, models[0].config.vocab_size, (1, tokens))
    found: list[dict[str, Any]] = [{"seconds": []} for _ in models]
    for _ in range(rounds + 1):  # the first one warms up
        for model, row in zip(models, found, strict=True):
            model.zero_grad()
            start = time.process_time()  # one thread: what others do on this machine counts less
            out = model(ids, labels=ids, output_router_logits=False)
            out.loss.backward()
            row["seconds"].append(time.process_time() - start)
            row["loss"] = float(out.loss)
            learned = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            row["gradient"] = float(torch.stack(learned).norm())
            row["weights"] = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    status = Path("/proc/self/status").read_text().splitlines()
    largest = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    return [row | {"seconds": median(row["seconds"][1:]), "largest": largest} for row in found]


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements in Markdown, the dequantised model's of the same tokens as 1."""
    lines = [
        "| tokens | experts | forward, backward | beside dequantised | weights "
        "| largest while training | same numbers |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        dense = next(r for r in rows if r["tokens"] == row["tokens"] and r["way"] == WAYS[0])
        same = all(row[key] == dense[key] for key in ("loss", "gradient"))
        lines.append(
            f"| {row['tokens']} | {row['way']} | {row['seconds']:.2f} s "
            f"| {row['seconds'] / dense['seconds']:.2f} x | {row['weights'] / 1e9:.2f} GB "
            f"| {row['largest'] / 1e9:.2f} GB | {'yes' if same else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_model(options.write, options.layers, options.hidden)
        return
    if options.child:
        folder, ways, tokens = options.child
        chosen = [WAYS[int(number)] for number in ways]
        found = measure(Path(folder), chosen, int(tokens), options.rounds, options.dtype)
        print("\n" + json.dumps(found))
        return
    sizes = ["--layers", str(options.layers), "--hidden", str(options.hidden)]
    again = [sys.executable, __file__, *sizes, "--dtype", options.dtype, "--rounds"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([*again, "1", "--write", folder])
        size = size_of(folder / "model.safetensors")
        for tokens in options.tokens:
            child = run([*again, str(options.rounds), "--child", folder, "012", str(tokens)])
            for number, timed in enumerate(json.loads(child.said.splitlines()[-1])):
                child = run([*again, "1", "--child", folder, str(number), str(tokens)])
                (alone,) = json.loads(child.said.splitlines()[-1])
                timed["largest"] = alone["largest"]
                rows.append({"way": WAYS[number], "tokens": tokens} | timed)
        facts = machine(folder)
    print(f"{options.layers} layers of width {options.hidden}, a file of {size / 1e9:.2f} GB\n")
    print(table(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        shape = {"layers": options.layers, "hidden": options.hidden, "dtype": options.dtype}
        record = {"machine": facts, "file": size, **shape, "rows": rows}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
