"""How long a user waits before anything happens: every help page, and the first training step.

    python benchmarks/startup.py [--rounds 5] [--out DIR]

CPU seconds of `gptoss COMMAND -h` for every command, the least of --rounds processes (what else the
machine does can only add); and wall seconds from the start of `gptoss train-grpo --model tiny` with
its default table to the end of its first optimizer step, the tiny model already built.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from goals import goal, write
from measuring import environment, machine

HERE = Path(__file__).resolve().parent
HELP, FIRST_STEP = 0.25, 20.0  # seconds
CALL = [sys.executable, "-m", "gptoss_tools"]


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one process."""
    with subprocess.Popen(
        [*CALL, *arguments], stdout=subprocess.DEVNULL, env=environment()
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"gptoss {' '.join(arguments)} failed")
    return usage.ru_utime + usage.ru_stime


def commands() -> list[str]:
    """The names of all commands, from the root help."""
    said = subprocess.run(
        [*CALL, "-h"], capture_output=True, text=True, env=environment(), check=True
    ).stdout
    return re.findall(r"^  ([a-z][a-z-]+)  ", said.partition("Commands:")[2], flags=re.MULTILINE)


def first_step(completion: int) -> float:
    """Wall seconds until the first line of metrics.jsonl stands."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        options = ["--model", "tiny", "--max-steps", "1", "--output-dir", str(run)]
        options += ["--data", str(HERE.parent / "data" / "train")]
        options += ["--max-completion-length", str(completion)]
        start = time.perf_counter()
        done = subprocess.Popen(
            [*CALL, "train-grpo", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        metrics = run / "metrics.jsonl"
        while done.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        said = done.communicate()[1]
        if done.returncode:
            raise SystemExit(f"train-grpo failed:\n{said}")
        return seconds


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--completion", type=int, default=40, help="max_completion_length")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pages = {"": ["-h"]} | {name: [name, "-h"] for name in commands()}
    helps = {
        name: min(cpu_seconds(page) for _ in range(options.rounds)) for name, page in pages.items()
    }
    first_step(options.completion)  # builds the tiny model where it is not there yet
    step = min(first_step(options.completion) for _ in range(max(1, options.rounds // 2)))
    print("| | CPU seconds |\n|---|---|")
    for name, seconds in helps.items():
        print(f"| gptoss {name}{' ' if name else ''}-h | {seconds:.3f} |")
    print(f"\nfirst step of train-grpo on the tiny model: {step:.1f} s")
    if options.out:
        goals = [
            goal("slowest help page, CPU seconds", max(helps.values()), HELP, "lower"),
            goal("first step of train-grpo (tiny), seconds", step, FIRST_STEP, "lower"),
        ]
        record = {"machine": machine(Path.cwd()), "goals": goals, "help": helps}
        write(options.out, "startup", "python benchmarks/startup.py", record)


if __name__ == "__main__":
    main()
