"""What the benchmarks share: a child's seconds and memory, cold and warm files, the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("gptoss-tools", "torch", "transformers", "peft", "safetensors", "numpy")


@dataclass(frozen=True)
class Child:
    """How one command ended: wall seconds, bytes at the peak, and what it said."""

    seconds: float
    peak_rss: int
    peak_anonymous: int  # without file pages that are mapped; polled, so a lower bound
    said: str


def run(command: Sequence[str | Path]) -> Child:
    """Run a command to its end and measure it. Raises SystemExit with its output if it fails.

    The peak is the kernel's own figure for this child alone. It cannot be less than what the
    parent had at the fork, so the parent must not import heavy libraries before.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as process:
        anonymous: list[int] = [0]
        watcher = threading.Thread(target=_watch, args=(process.pid, anonymous), daemon=True)
        watcher.start()
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Child(seconds, usage.ru_maxrss * unit, anonymous[0], said)


def environment() -> dict[str, str]:
    """This process's variables without the user's settings, and without the network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPTOSS_", "GRPO_", "HF_"))}
    sources = str(Path(__file__).resolve().parents[1] / "src")
    path = os.pathsep.join(filter(None, [sources, os.environ.get("PYTHONPATH")]))
    cache = {k: v for k, v in os.environ.items() if k in ("GPTOSS_CACHE", "HF_HOME")}
    return kept | cache | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def _watch(process: int, peak: list[int]) -> None:
    pattern = re.compile(r"RssAnon:\s+(\d+) kB")
    with contextlib.suppress(OSError):
        while match := pattern.search(Path(f"/proc/{process}/status").read_text()):
            peak[0] = max(peak[0], int(match[1]) * 1024)
            time.sleep(0.02)


def files(folder: Path) -> list[Path]:
    """The files of a folder itself."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in files(path))


def make_cold(folder: Path) -> None:
    """Let the system forget the contents of a folder's files, so that they come from the disk."""
    for path in files(folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def make_warm(folder: Path) -> None:
    """Read a folder's files once, so that they are in memory as far as it has room."""
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def machine(folder: Path) -> dict[str, Any]:
    """The hardware and software that a figure belongs to."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    named = re.search(r"model name\s*:\s*(.+)", facts)
    return {
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "file_system": file_system(folder),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """The installed version of a package, None where it runs from its sources."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def file_system(folder: Path) -> str:
    """The type of the file system that holds a folder."""
    mounts = [(Path(p.mountpoint), p.fstype) for p in psutil.disk_partitions(all=True)]
    inside = [m for m in mounts if folder.resolve().is_relative_to(m[0])]
    return max(inside, key=lambda m: len(m[0].parts))[1] if inside else "unknown"
