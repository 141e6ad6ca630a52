"""What was to be reached and what was: one table of all benchmarks.

    python benchmarks/goals.py [--results DIR] [--out FILE] [--readme README.md]

Every benchmark writes its figures to `results/NAME.json`; those that have a goal stand there
under `goals`. This collects them into `results.json`, a list, and prints them as Markdown, by the
hardware they were measured on. Of a benchmark that did not run here, the last figures stand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
MARKS = ("<!-- goals -->", "<!-- end of goals -->")


def goal(
    name: str, value: float | None, wanted: float, better: Literal["higher", "lower"]
) -> dict[str, Any]:
    """A figure beside what it should be; None is a figure that could not be had here."""
    row = {"name": name, "value": value, "goal": wanted, "better": better, "met": None}
    if value is not None:
        row["met"] = value >= wanted if better == "higher" else value <= wanted
    return row


def write(folder: Path, name: str, command: str, record: dict[str, Any]) -> None:
    """Keep a benchmark's figures, with the command that makes them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"command": command} | record, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def collect(results: Path) -> list[dict[str, Any]]:
    """All goals, in the order of the files' names, each with the command and the machine."""
    rows = []
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for row in record.get("goals", []):
            rows.append(row | {"command": record["command"], "machine": hardware(record)})
    return rows


def hardware(record: dict[str, Any]) -> str:
    """The machine of a record in a few words."""
    machine = record.get("machine", {})
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine.get('cores', '?')} cores of {machine.get('cpu', '?')}{gpu}"


def table(rows: list[dict[str, Any]]) -> str:
    """The goals as Markdown, one table per machine."""
    lines: list[str] = []
    for machine in dict.fromkeys(row["machine"] for row in rows):
        lines += [f"{machine}", "", "| | value | goal | met | command |", "|---|---|---|---|---|"]
        for row in rows:
            if row["machine"] == machine:
                sign = ">=" if row["better"] == "higher" else "<="
                value = "not measured" if row["value"] is None else f"{row['value']:.4g}"
                met = {True: "yes", False: "no", None: ""}[row["met"]]
                lines.append(
                    f"| {row['name']} | {value} | {sign} {row['goal']:g} | {met} "
                    f"| `{row['command']}` |"
                )
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Collect, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--readme", type=Path, help="put the table between its marks there")
    options = parser.parse_args()
    rows = collect(options.results)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if options.readme:
        text = options.readme.read_text(encoding="utf-8")
        head, _, rest = text.partition(MARKS[0])
        tail = rest.partition(MARKS[1])[2]
        text = f"{head}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{tail}"
        options.readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
