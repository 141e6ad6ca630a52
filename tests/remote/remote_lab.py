"""What the tests of the remote room share: a short training, and volumes that are folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.runs import Run

STEPS = 24
SHORT = (
    *("--model", "tiny", "--num-generations", "4", "--max-completion-length", "8"),
    *("--max-steps", str(STEPS), "--save-steps", "3"),
)


def write_table(path: Path, rows: int = 6) -> Path:
    """Write a table of two actions with rewards."""
    prompt = "<|start|>user<|message|>Choose [0] or [1], case {}.<|end|><|start|>assistant"
    lines = ["prompt,q_action_0,q_action_1,reward_action_0,reward_action_1"]
    lines += [
        f'"{prompt.format(row)}",{row},1.5,{int(row > 1)},{int(row < 2)}' for row in range(rows)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def gptoss(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command line in a process of its own."""
    line = [sys.executable, "-m", "gptoss_tools", *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        line, cwd=cwd, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def wait_for_step(run: Path, step: int, seconds: float = 60) -> None:
    """Wait until the run has logged `step`."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        records = read_metrics(run / "metrics.jsonl")
        if records and records[-1]["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} did not reach step {step}")


class CountingVolume:
    """Notes what a run had written at every commit: the steps of its complete checkpoints."""

    def __init__(self, run: Path) -> None:
        self.run, self.reloads, self.commits = run, 0, list[Any]()

    def reload(self) -> None:
        self.reloads += 1

    def commit(self) -> None:
        self.commits.append([point.step for point in Run(self.run).checkpoints()])


class FolderVolume:
    """A volume that is a folder, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def batch_upload(self, force: bool = False) -> FolderVolume:
        return self

    def __enter__(self) -> FolderVolume:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put_file(self, source: Any, remote: str) -> None:
        target = self.folder / remote.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read() if hasattr(source, "read") else Path(source).read_bytes())


def document(done: subprocess.CompletedProcess) -> dict[str, Any]:
    """The JSON that a command printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
