"""How fast the data commands are beside the row-by-row way, and how much memory they take.

    python benchmarks/data_commands.py [--rows 200000] [--sample 4000] [--folder DIR] [--out DIR]

Makes a CSV file of legacy prompts (140 bytes) with four values per row; then, in one run and each
as a process of its own: calc-reward on it, convert-harmony on what that wrote, check-data on the
result. Beside the first two, on the first --sample rows of the same file: the row-by-row way
(row_by_row.py says what it does), before and after, the mean of both scaled to all rows in
proportion. Both are timed from opening the file to the file written, without Python's start and
imports, by the clock and in CPU seconds, which other work on the machine moves less. The values
and prompts of the sample must come out equal. MB/s are of the input. Disk: 1.1 kB per row. With
--out the figures go to data_commands.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import measuring
from goals import goal, write

HERE = Path(__file__).resolve().parent
COMMAND = "python benchmarks/data_commands.py"
GOALS = {"calc-reward": 50.0, "convert-harmony": 10.0}
MOST_MEMORY = 1e9
OURS = """
import json, sys, time
from gptoss_tools.data.check import check
from gptoss_tools.data.convert import convert
from gptoss_tools.data.score import score
start, used = time.perf_counter(), time.process_time()
if sys.argv[1] == "calc-reward":
    score([sys.argv[2]])
elif sys.argv[1] == "convert-harmony":
    convert([sys.argv[2]])
else:
    assert not check([sys.argv[2]])
seconds, cpu = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}))
"""


class Bench:
    """One run: a folder to work in, and a row of figures per command."""

    def __init__(self, folder: Path, rows: int, sample: int):
        self.folder, self.rows, self.sample = folder, rows, min(sample, rows)
        self.figures: list[dict[str, Any]] = []

    def measure(self, command: str, source: Path, ways: dict[str, str]) -> None:
        """Run a command on a file and the row-by-row ways of it on the file's first rows."""
        few = head(source, self.folder / "sample.csv", self.sample)
        outputs = {way: self.folder / f"sample_{way}.csv" for way in ways}
        before = {way: self.row_by_row(way, few, outputs[way]) for way in ways}
        child = measuring.run([sys.executable, "-c", OURS, command, source])
        after = {way: self.row_by_row(way, few, outputs[way]) for way in ways}
        (seconds, cpu), size = said(child), source.stat().st_size
        figures: dict[str, Any] = {
            "command": command,
            "rows": self.rows,
            "input_bytes": size,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "rows_per_second": self.rows / seconds,
            "mb_per_second": size / seconds / 1e6,
            "peak_rss": child.peak_rss,
            "load": os.getloadavg()[0],  # what else ran took its share
            "row_by_row": {},
        }
        for way, title in ways.items():
            each, each_cpu = (
                sum(pair) / 2 / self.sample for pair in zip(before[way], after[way], strict=True)
            )
            figures["row_by_row"][title] = {
                "seconds_per_row": each,
                "cpu_seconds_per_row": each_cpu,
                "seconds_scaled": each * self.rows,
                "times": each * self.rows / seconds,
                "times_cpu": each_cpu * self.rows / cpu,
            }
        self.figures.append(figures)
        print(line(figures), file=sys.stderr, flush=True)

    def row_by_row(self, way: str, source: Path, target: Path) -> tuple[float, float]:
        return said(measuring.run([sys.executable, HERE / "row_by_row.py", way, source, target]))


def said(child: measuring.Child) -> tuple[float, float]:
    """The seconds that a child says it took, on its last line, and those of the CPU."""
    record = json.loads(child.said.splitlines()[-1])
    return record["seconds"], record["cpu_seconds"]


def make(path: Path, rows: int, seed: int = 0) -> Path:
    """Write a legacy table; values lie like costs of four actions, most some tau (0.05) apart."""
    draw = random.Random(seed)
    rule = "system: Run a heat pump with a cold tank at the least cost. Answer with exactly [k]."
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("id,prompt,optimal_action,q_action_0,q_action_1,q_action_2,q_action_3\n")
        for row in range(rows):
            level = draw.random() * 5
            q = [-level - draw.random() * 0.5 for _ in range(4)]
            asked = f"user: Hour {row % 24:02d}: load {draw.randrange(90)} kW, case {row}. Which?"
            best = q.index(max(q))
            file.write(f'{row},"{rule}\n{asked}",{best},{q[0]!r},{q[1]!r},{q[2]!r},{q[3]!r}\n')
    return path


def head(source: Path, target: Path, rows: int) -> Path:
    """Write the first rows of a CSV file to another."""
    with source.open(newline="", encoding="utf-8") as file, target.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(islice(csv.reader(file), rows + 1))
    return target


def compare(ours: Path, theirs: Path, rows: int) -> None:
    """Raise SystemExit unless the rows of both files mean the same: text equal, numbers near."""
    with ours.open(newline="", encoding="utf-8") as a, theirs.open(newline="") as b:
        for one, other in islice(zip(csv.DictReader(a), csv.DictReader(b), strict=False), rows):
            for name in one.keys() | other.keys():
                same = one[name] == other[name]
                if not same and name.startswith(("q_action", "reward_action")):
                    same = abs(float(one[name]) - float(other[name])) <= 1e-12
                if not same:
                    raise SystemExit(f"column {name}: {one[name]!r} here, {other[name]!r} there")


def line(figures: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    ratios = [
        f"{title}: {way['times']:.0f} ({way['times_cpu']:.0f})"
        for title, way in figures["row_by_row"].items()
    ]
    return (
        f"| {figures['command']} | {figures['seconds']:.1f} | {figures['cpu_seconds']:.1f} "
        f"| {figures['rows_per_second']:,.0f} | {figures['mb_per_second']:.0f} "
        f"| {figures['peak_rss'] / 1e6:.0f} "
        f"| {', '.join(ratios)} |"
    )


def table(figures: list[dict[str, Any]]) -> str:
    head = "| | seconds | of CPU | rows/s | MB/s | peak RSS, MB | times as fast (by CPU) |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *map(line, figures)])


def goals(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast as the first row-by-row way, by the clock and by CPU; the memory."""
    found = []
    for row in figures:
        name = f"{row['command']}, {row['rows']} rows"
        for way in list(row["row_by_row"].values())[:1]:
            wanted = GOALS[row["command"]]
            found.append(goal(f"{name}: times row by row", way["times"], wanted, "higher"))
            found.append(goal(f"{name}: the same in CPU", way["times_cpu"], wanted, "higher"))
        found.append(goal(f"{name}: peak memory, bytes", row["peak_rss"], MOST_MEMORY, "lower"))
    return found


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--sample", type=int, default=4_000, help="rows for the row-by-row way")
    parser.add_argument("--folder", type=Path, help="where to work (default: temporary)")
    parser.add_argument("--out", type=Path, help="folder for data_commands.json")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
        bench = Bench(Path(home), options.rows, options.sample)
        legacy = make(bench.folder / "x.csv", options.rows)
        scored = legacy.with_name("x_with_reward.csv")
        ways = {"reward": "row[columns]", "reward-lean": "cell by cell"}
        bench.measure("calc-reward", legacy, ways)
        for way in ways:
            compare(scored, bench.folder / f"sample_{way}.csv", bench.sample)
        legacy.unlink()
        harmony = legacy.with_name("x_with_reward_harmony.csv")
        bench.measure("convert-harmony", scored, {"convert": "apply_chat_template"})
        compare(harmony, bench.folder / "sample_convert.csv", bench.sample)
        scored.unlink()
        bench.measure("check-data", harmony, {})
        record = {"machine": measuring.machine(bench.folder), "sample": bench.sample}
    print(table(bench.figures))
    if options.out is not None:
        record |= {"figures": bench.figures, "goals": goals(bench.figures)}
        write(options.out, "data_commands", f"{COMMAND} --rows {options.rows}", record)


if __name__ == "__main__":
    main()
