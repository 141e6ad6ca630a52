"""One attempt at a command in a container: run it as a child process and keep what it wrote.

Modal may take a machine away at any time and then calls the same function again with the same
arguments. A training whose run folder this call has begun already is therefore resumed, and what a
run writes is committed to the volume as it comes. Leaves out where a container is and how it is
called (`bodies`).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptoss_tools.core.runs import HOME, LATEST, Run
from gptoss_tools.errors import GptossError
from gptoss_tools.remote.child import TRAININGS, Node, program, run_child
from gptoss_tools.remote.volume import Volume, committing

KEPT = ("--json", "--quiet", "-q", "--verbose", "-v", "--allow-changes")  # by later attempts
CALL = ".modal-call"  # in a run folder: which call began it


class Unfinished(GptossError, RuntimeError):
    """The command was ended before its end; another attempt goes on where this one stopped."""


def carry_out(
    argv: Sequence[str],
    work: Path,
    *,
    call: str,
    say: Callable[[str], Any],
    volume: Volume | None = None,
    processes: int = 1,
    node: Node | None = None,
    every: float = 10.0,
    grace: float = 20.0,
) -> dict[str, Any]:
    """Run `gptoss ARGV` in the folder `work`; return its exit_code, stdout, result and run folder.

    `call` names the call that all attempts belong to. `say` hears standard output as it comes;
    `result` is that output read as JSON, or None. `every` (seconds) is how often the volume is
    looked after, `grace` how long an interrupted child may take to save. Raises Unfinished where
    another attempt helps: the child was killed, or failed after it had got further.
    """
    node = node or Node()
    if volume is not None:
        volume.reload()
    line, run = list(argv), _run_of(argv, work, call)
    if run is not None:
        folder = _inside(run, work)
        if _began(run, call, argv[0]):
            line = ["resume", folder, *(word for word in argv if word in KEPT)]
        else:
            _claim(run, call, argv[0])
            if argv[0] != "resume" and _value(argv, "--output-dir") is None:
                line.append(f"--output-dir={folder}")
        further = [_value(line, flag) for flag in ("--max-steps", "--resume-steps")]
        if line[0] == "resume" and run.outcome and further == [None, None]:
            # It ended, and then the answer was lost: nothing is left to do but to give it again.
            trained = {n: f"{folder}/{n}" for n in ("adapter", "model") if (run.path / n).is_dir()}
            found = {"run": folder, **run.outcome, **trained}
            return _answer(0, json.dumps(found, indent=2) + "\n", run, work)
    before = _reached(run)
    with committing(volume if node.rank == 0 else None, run, every, say):
        code, stdout = run_child(program(line, processes, node) + line, work, say, grace)
    killed = code < 0 or code in (130, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
    if killed or (code and _reached(run) > before):
        where = f" after step {_reached(run)}" if run is not None else ""
        raise Unfinished(f"`gptoss {line[0]}` ended with exit code {code}{where}")
    return _answer(code, stdout, run, work)


def _answer(code: int, stdout: str, run: Run | None, work: Path) -> dict[str, Any]:
    try:
        result = json.loads(stdout)
    except ValueError:
        result = None
    folder = None if run is None else _inside(run, work)
    return {"exit_code": code, "stdout": stdout, "result": result, "run": folder}


def _reached(run: Run | None) -> int:
    point = None if run is None else Run(run.path).checkpoint()
    return point.step if point else 0


def _run_of(argv: Sequence[str], work: Path, call: str) -> Run | None:
    """Return the run folder of a training: the one it names, or one named after the call."""
    if argv[0] not in TRAININGS:
        return None
    if argv[0] == "resume":
        named = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else str(HOME / LATEST)
        folder = work / named
        return Run(folder.parent.parent if folder.parent.name == "checkpoints" else folder)
    if _value(argv, "--resume") is not None:
        return None
    return Run(work / (_value(argv, "--output-dir") or HOME / call))


def _value(argv: Sequence[str], flag: str) -> str | None:
    """Return what a flag is given in a command line, written `--flag x` or `--flag=x`."""
    found = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == flag:
            found = following
        elif word.startswith(flag + "="):
            found = word.partition("=")[2]
    return found


def _inside(run: Run, work: Path) -> str:
    path = run.path
    return path.relative_to(work).as_posix() if path.is_relative_to(work) else str(path)


def _claim(run: Run, call: str, command: str) -> None:
    """Note that `call` begins a run, or goes on with it after so many starts.

    A folder that holds a run already is no new one's: gptoss refuses it.
    """
    if run.config_path.is_file() != (command == "resume"):
        return
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / CALL).write_text(f"{call} {_starts(run)}", encoding="utf-8")


def _began(run: Run, call: str, command: str) -> bool:
    """Whether an earlier attempt of this call has begun this run, or gone on with it."""
    marker = run.path / CALL
    noted = marker.read_text(encoding="utf-8").split() if marker.is_file() else []
    if noted[:1] != [call] or not run.config_path.is_file():
        return False
    return command != "resume" or _starts(run) > int(noted[1])


def _starts(run: Run) -> int:
    starts = run.path / "starts.jsonl"
    return starts.read_bytes().count(b"\n") if starts.is_file() else 0
