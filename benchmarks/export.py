"""How fast an export is and how much memory it takes, beside `cp` and load-merge-save.

    python benchmarks/export.py [--size tiny|20b] [--folder DIR] [--formats mxfp4 ...] [--out DIR]

Makes a synthetic checkpoint with an adapter on q, k, v and o of every layer, then measures, in one
run and as processes of their own: `cp` of the same files, `gptoss export` in each format, and what
load-merge-save needs (transformers and PEFT) on models that fit, extrapolated. Every figure counts
until the bytes are on the disk. Cold: the system was told to forget the sources; warm: they were
read just before. "Without start" leaves out Python and its libraries. Prints a Markdown table; with
--size 20b (40 GB of disk, 70 for all of bf16; half an hour) also writes export.json and export.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
from export_table import line, summarize, table
from measuring import Child, size_of

HERE = Path(__file__).resolve().parent
FORMATS = ("mxfp4", "bf16", "gguf")
SUBSET = 6  # layers to measure bf16 on, where the disk does not hold the whole
SPARE = 10e9  # bytes of disk left to others
DEPTHS = (1, 2)  # layers of the models that load-merge-save is measured on: 9 GB of memory


class Bench:
    """One run: a folder to work in, a checkpoint, and the rows measured so far."""

    def __init__(self, folder: Path, size: str, rounds: int):
        self.folder, self.size, self.rounds = folder, size, rounds
        self.rows: list[dict[str, Any]] = []
        self.base, self.adapter = self.make("base")

    def make(self, name: str, layers: int | None = None) -> tuple[Path, Path]:
        """Write a checkpoint and its adapter, in a process of its own; found again by name."""
        base, adapter = self.folder / name, self.folder / f"{name}-adapter"
        if not base.exists():
            command = [sys.executable, HERE / "make_checkpoint.py", "--size", self.size]
            command += ["--out", base, "--adapter", adapter]
            made = measuring.run(command + (["--layers", str(layers)] if layers else []))
            tell(f"{made.said.strip()} in {made.seconds:.0f} s, {made.peak_rss / 1e6:.0f} MB")
        return base, adapter

    def remove(self, *folders: Path) -> None:
        for folder in folders:
            shutil.rmtree(folder)

    def measure(self, what: str, command: Callable[[Path], list], base: Path, cold: bool) -> Child:
        """Run a command that writes a folder; keep its figures under `what`, remove the folder."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        (measuring.make_cold if cold else measuring.make_warm)(base)
        child = measuring.run(command(out))
        record = {
            "what": what,
            "sources": "cold" if cold else "warm",
            "seconds": child.seconds,
            "own_seconds": None,  # without starting Python and its libraries
            "bytes": size_of(out),
            "peak_rss": child.peak_rss,
            "peak_anonymous": child.peak_anonymous,
            "load": os.getloadavg()[0],  # what else ran took its share
            "extrapolated": False,
        }
        self.rows.append(record)
        shutil.rmtree(out)
        rate = record["bytes"] / child.seconds / 1e6
        tell(
            f"{what}, {record['sources']}: {child.seconds:.1f} s, {rate:.0f} MB/s, "
            f"{child.peak_rss / 1e6:.0f} MB"
        )
        return child

    def copy(self, cold: bool) -> None:
        """`cp`, then flush each file as the export does."""
        script = 'mkdir "$2" && cp "$1"/* "$2"/ && sync "$2"/* "$2"'
        self.measure("cp", lambda out: ["sh", "-c", script, "cp", self.base, out], self.base, cold)

    def export(self, form: str, base: Path, adapter: Path, cold: bool, what: str = "") -> None:
        """`gptoss export`, as a user calls it."""
        options = ["--base", base, "--format", form, "--out"]
        command = [sys.executable, "-m", "gptoss_tools", "export", adapter, "--json", *options]
        child = self.measure(what or form, lambda out: [*command, out], base, cold)
        own = re.search(r'"seconds": ([\d.]+)', child.said)
        self.rows[-1]["own_seconds"] = float(own[1]) if own else None

    def load_merge_save(self) -> None:
        """Measure load-merge-save on two small depths and extrapolate by bytes to the whole.

        Memory goes along the line through both, seconds in proportion to the larger one's bytes.
        """
        points = []
        for layers in DEPTHS:
            base, adapter = self.make(f"layers-{layers}", layers)
            worker = [sys.executable, Path(__file__).resolve(), "--load-merge-save", base, adapter]
            name = f"load-merge-save, {layers} layer{'s' if layers > 1 else ''}"
            child = self.measure(name, lambda out, w=worker: [*w, out], base, cold=False)
            points.append((dequantised_bytes(base), child))
            self.remove(base, adapter)
        whole, (size, last) = dequantised_bytes(self.base), points[-1]
        self.rows.append(
            {
                "what": "load-merge-save, whole",
                "sources": "warm",
                "seconds": last.seconds * whole / size,
                "own_seconds": None,
                "bytes": whole,
                "peak_rss": line([(n, c.peak_rss) for n, c in points], whole),
                "peak_anonymous": line([(n, c.peak_anonymous) for n, c in points], whole),
                "extrapolated": True,
            }
        )

    def bf16(self) -> None:
        """Write the whole in bf16 where the disk holds it, else a few layers, in proportion."""
        whole = dequantised_bytes(self.base)
        if shutil.disk_usage(self.folder).free > whole + SPARE:
            self.export("bf16", self.base, self.adapter, cold=True)
            return
        base, adapter = self.make(f"layers-{SUBSET}", SUBSET)
        self.export("bf16", base, adapter, cold=True, what=f"bf16, {SUBSET} layers")
        self.remove(base, adapter)
        row = self.rows[-1] | {"what": "bf16, whole", "bytes": whole, "extrapolated": True}
        row["seconds"] *= whole / self.rows[-1]["bytes"]
        self.rows.append(row | {"own_seconds": None})


def dequantised_bytes(base: Path) -> int:
    """Bytes of a checkpoint with everything in bfloat16."""
    total = 0
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        for name, row in header.items():
            size = row["data_offsets"][1] - row["data_offsets"][0]
            # 16 bytes of blocks are 32 values; scales vanish
            total += 4 * size if name.endswith("_blocks") else 0
            total += size if not name.endswith(("_blocks", "_scales")) else 0
    return total


def load_merge_save(base: str, adapter: str, out: str) -> None:
    """Merge the usual way: the whole model in memory, dequantised, and saved again."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    for path in Path(out).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def tell(text: str) -> None:
    """Say how far it is, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure everything and print the table."""
    if sys.argv[1:2] == ["--load-merge-save"]:
        load_merge_save(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("20b", "tiny"), default="tiny")
    parser.add_argument("--folder", type=Path, help="where to work, kept (default: temporary)")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=2, help="of cp and mxfp4, by turns")
    parser.add_argument("--no-load-merge-save", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, options.size, options.rounds)
        for number in range(options.rounds):
            for cold in (True, False):
                steps = [lambda c=cold: bench.copy(c)]
                if "mxfp4" in options.formats:
                    steps.append(lambda c=cold: bench.export("mxfp4", bench.base, bench.adapter, c))
                for step in steps if number % 2 == 0 else reversed(steps):
                    step()
        if "gguf" in options.formats:
            bench.export("gguf", bench.base, bench.adapter, cold=True)
        if "bf16" in options.formats:
            bench.bf16()
        if not options.no_load_merge_save:
            bench.load_merge_save()
        rows, load = summarize(bench.rows), [row["load"] for row in bench.rows if "load" in row]
        record = {"size": options.size, "machine": measuring.machine(folder)}
    text = table(rows)
    text += (
        f"\n\nLoad average meanwhile: {min(load):.1f} to {max(load):.1f}, {os.cpu_count()} cores."
    )
    print(text)
    if options.size == "20b":
        options.out.mkdir(parents=True, exist_ok=True)
        record |= {"rows": rows, "measured": bench.rows}
        (options.out / "export.json").write_text(json.dumps(record, indent=2) + "\n")
        (options.out / "export.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
