"""gptoss as a child process: how it is started, heard, and told to stop."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAININGS = ("train-grpo", "train-sft", "pretrain", "resume")
PORT = 29400


@dataclass(frozen=True)
class Node:
    """One of several machines that train together; `main` is the address of the first."""

    rank: int = 0
    nodes: int = 1
    main: str = "127.0.0.1"


def program(line: Sequence[str], processes: int, node: Node) -> list[str]:
    """Return what starts gptoss: Python, or torchrun where several processes train."""
    if line[0] not in TRAININGS or processes * node.nodes == 1:
        return [sys.executable, "-m", "gptoss_tools"]
    where = ["--standalone"]
    if node.nodes > 1:
        where = [f"--nnodes={node.nodes}", f"--node-rank={node.rank}"]
        where += [f"--master-addr={node.main}", f"--master-port={PORT}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where]
    return [*torchrun, f"--nproc-per-node={processes}", "-m", "gptoss_tools"]


def run_child(
    line: Sequence[str],
    work: Path | None,
    say: Callable[[str], Any],
    grace: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a command line in the folder `work`; return its exit code and standard output.

    Whatever ends this process is handed on to the child, once, as SIGTERM; it has `grace` seconds
    to end, or until a second interruption.
    """
    heard: list[str] = []

    def listen(stream) -> None:
        for piece in stream:
            heard.append(piece)
            say(piece)

    # In a session of its own it hears of an interruption from here alone, and only once.
    child = subprocess.Popen(
        line,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    listener = threading.Thread(target=listen, args=(child.stdout,))
    listener.start()
    try:
        with sigterm_interrupts():
            child.wait()
    except BaseException:
        child.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(grace)
        finally:
            child.kill()
        raise
    finally:
        child.wait()
        listener.join()
    return child.returncode, "".join(heard)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM act like SIGINT, which is what Modal sends before it takes a machine away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("ended by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
