"""--modal: the same command line, on a GPU at Modal.

Standard output of the command there becomes standard output here, its exit code this one's; what it
says meanwhile goes to standard error. See docs/modal.md.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from ..console import out
from ..load import Loaded
from .options import Request


def run_on_modal(request: Request, loaded: Loaded) -> int:
    """Send the command to Modal and return its exit code; with --dry-run only say what would go."""
    from ..remote.job import plan_job
    from ..remote.volume import WORK

    settings: Any = loaded.settings
    if getattr(settings, "prompt", None) == "-":
        settings = settings.model_copy(update={"prompt": sys.stdin.read()})
    modes = {"json": ["--json"], "quiet": ["--quiet"]}.get(request.mode, [])
    job = plan_job(
        request.command.name,
        settings,
        explicit=loaded.explicit & set(type(settings).model_fields),
        positional=request.command.positional,
        modes=[*modes, *(["--verbose"] if request.verbose else [])],
    )
    if getattr(settings, "dry_run", False):
        out.result(
            {
                "command": ["gptoss", *job.argv],
                "gpu": settings.gpu,
                "nodes": settings.nodes,
                "files": [one.remote for one in job.uploads],
                "bytes": job.size,
                "output": job.output,
            }
        )
        return 0
    from ..remote.launch import launch

    ended = launch(job, settings, shown=_shown(), notice=out.notice)
    fetch = f"modal volume get {WORK} {job.output} ." if job.output else f"modal volume ls {WORK}"
    if ended.exit_code is None:
        found = {"app": ended.app_id, "call": ended.call_id, "output": job.output}
        out.result(found, f"runs on Modal as {ended.app_id}")
        out.hint(f"modal app logs {ended.app_id}; afterwards: {fetch}")
        return 0
    if request.mode == "json":
        if ended.result is not None:
            out.result(ended.result)
    elif not (sys.stderr.isatty() and sys.stdout.isatty()):  # a terminal has shown it as it came
        out.text(ended.stdout)
    if ended.exit_code:
        failed = f"`gptoss {request.command.name}` ended with exit code {ended.exit_code} at Modal"
        out.error(failed, f"modal app logs {ended.app_id}")
    else:
        out.hint(fetch)
    return ended.exit_code


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Show what happens at Modal, on standard error: standard output is for the result."""
    import modal

    if out.mode in ("quiet", "silent"):
        yield
        return
    with contextlib.redirect_stdout(sys.stderr), modal.enable_output():
        yield
