"""How fast prepare-data is, and that its memory does not grow with the text it reads.

    python benchmarks/prepare_data.py [--rows 15000] [--folder DIR] [--out DIR]

Makes a JSONL file of questions in the shape of Rubrics as Rewards (3.7 kB and eight items a row),
and prepares it and one of four times as many rows, each as a process of its own. Timed from reading
to the folder written, without Python's start and imports; memory is the process's peak, and its
growth is what the further rows added. Disk: 40 kB for each of --rows. With --out the figures go to
prepare_data.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
from goals import goal, write

COMMAND = "python benchmarks/prepare_data.py"
MOST_BYTES_PER_ROW = 400.0  # a hash of 16 bytes as Python keeps it, and the rest of a set
OURS = """
import json, sys, time
from gptoss_tools.data.prepare import prepare
from gptoss_tools.settings import PrepareDataSettings
start = time.process_time()
report = prepare(PrepareDataSettings(paths=[sys.argv[1]], out=sys.argv[2])).report
assert not report.dropped
print(json.dumps({"seconds": time.process_time() - start}))
"""


def make(path: Path, rows: int, seed: int = 0) -> Path:
    """Write questions, answers and rubrics of made-up words."""
    draw = random.Random(seed)
    words = ["water", "carbon", "heat", "a", "the", "rises", "cold", "hour", "tank", "price"]
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            said = [" ".join(draw.choices(words, k=200)) for _ in range(2)]
            items = [
                {
                    "title": f"Item {n}",
                    "description": "Essential Criteria: " + " ".join(draw.choices(words, k=25)),
                    "weight": 5,
                }
                for n in range(8)
            ]
            cells = {"question": f"{row}: {said[0]}", "reference_answer": said[1], "rubric": items}
            file.write(json.dumps(cells) + "\n")
    return path


def measure(source: Path, rows: int) -> dict[str, Any]:
    """Prepare a file in a process of its own."""
    child = measuring.run([sys.executable, "-c", OURS, source, source.with_suffix("")])
    seconds = float(json.loads(child.said.splitlines()[-1])["seconds"])
    return {
        "rows": rows,
        "input_bytes": source.stat().st_size,
        "cpu_seconds": seconds,
        "rows_per_second": rows / seconds,
        "peak_rss": child.peak_rss,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure two sizes and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--folder", type=Path, help="where to work (default: temporary)")
    parser.add_argument("--out", type=Path, help="folder for prepare_data.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        home = Path(name)
        figures = [
            measure(make(home / f"{rows}.jsonl", rows), rows)
            for rows in (options.rows, 4 * options.rows)
        ]
        record = {"machine": measuring.machine(home), "figures": figures}
    print("| rows | MB | CPU seconds | rows/s | peak RSS, MB |\n|---|---|---|---|---|")
    for one in figures:
        print(
            f"| {one['rows']} | {one['input_bytes'] / 1e6:.0f} | {one['cpu_seconds']:.1f} "
            f"| {one['rows_per_second']:,.0f} | {one['peak_rss'] / 1e6:.0f} |"
        )
    few, many = figures
    growth = (many["peak_rss"] - few["peak_rss"]) / (many["rows"] - few["rows"])
    each = few["input_bytes"] / few["rows"]
    print(f"\nmemory grows by {growth:.0f} bytes per further row; a row has {each:.0f}")
    name = f"prepare-data: bytes of memory per further row of {each:.0f} bytes"
    record["goals"] = [goal(name, growth, MOST_BYTES_PER_ROW, "lower")]
    if options.out is not None:
        write(options.out, "prepare_data", f"{COMMAND} --rows {options.rows}", record)


if __name__ == "__main__":
    main()
