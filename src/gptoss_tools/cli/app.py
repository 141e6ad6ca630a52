"""The command table, and `main`: parse, run, turn errors into messages and exit codes.

Root help reads only this file and `typer`. A command's module is imported when that command is
asked for, and its heavy library only inside the command function.
"""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import typer

# name -> first line of its help. A test compares the lines with the docstrings.
COMMANDS: dict[str, str] = {
    "demo": "Run the whole of gptoss on the tiny model, from data to export.",
    "make-dataset": "Write a table of storage decisions with exact values.",
    "convert-harmony": "Turn legacy prompts into Harmony prompts.",
    "calc-reward": "Turn action values into rewards.",
    "prepare-data": "Turn published datasets into tables of prompts, train and test.",
    "check-data": "List every problem of every table at once.",
    "rewards": "List what train-grpo can reward, and what each reward reads.",
    "train-grpo": "Train a LoRA adapter with GRPO.",
    "train-sft": "Train on instructions and their answers.",
    "pretrain": "Train a small language model on text, new or from another.",
    "resume": "Go on with an interrupted run, exactly.",
    "test-adapter": "Show what an adapter answers to one prompt.",
    "generate": "Answer a prompt, or every row of a table.",
    "evaluate": "Measure a policy on held-out decisions, with intervals and baselines.",
    "export": "Merge an adapter into its base checkpoint, for serving.",
    "verify-export": "Check an export: structure, bytes against its base, values.",
    "pipeline": "Prepare, train, evaluate, log, export: what is not done yet.",
    "runs": "List runs: state, steps, held-out regret, size.",
    "report": "Make one HTML page that shows what runs learned.",
    "config": "Show every setting of a command and where its value comes from.",
    "doctor": "Say what this machine has and what each command lacks.",
}

EPILOG = "Start with `gptoss demo`. `gptoss COMMAND -h` explains a command."
HELP = {"help_option_names": ["-h", "--help"]}


def build_app(wanted: str | None, submit) -> typer.Typer:
    """Return the Typer app; only `wanted` has its real flags, the others just their help line."""
    app = typer.Typer(
        name="gptoss",
        help="Teach openai/gpt-oss to decide well from a table of prompts and Q-values.",
        epilog=EPILOG,
        rich_markup_mode=None,
        add_completion=True,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=HELP,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            from .. import __version__

            typer.echo(f"gptoss {__version__}")
            raise typer.Exit

    for name, line in COMMANDS.items():
        if name == wanted:
            _register(app, name, line, submit)
        else:
            app.command(name, help=line, short_help=line)(_stub)
    return app


def _stub() -> None:
    """Stand in for a command that was not asked for."""


def _register(app: typer.Typer, name: str, line: str, submit) -> None:
    from .options import epilog, typer_function

    spec = load_command(name)
    more = (spec.run.__doc__ or "").split("\n", 1)[1:]
    text = "\n".join([line, *(paragraph.rstrip() for paragraph in more)])
    function = typer_function(spec, submit)
    app.command(name, help=text, short_help=line, epilog=epilog(spec), context_settings=HELP)(
        function
    )


def load_command(name: str):
    """Import `cli/<name>.py` and return the Command of the same name."""
    attribute = name.replace("-", "_")
    return getattr(importlib.import_module("." + attribute, __package__), attribute)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    requests: list[Any] = []
    completing = any(key.endswith("_COMPLETE") for key in os.environ)
    if completing and wanted is None:
        words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
        wanted = next((w for w in words[1:] if w in COMMANDS), None)
    try:
        build_app(wanted, requests.append)(args=arguments, prog_name="gptoss")
    except SystemExit as done:
        if not requests:
            return int(done.code or 0) if not isinstance(done.code, str) else 2
    except KeyboardInterrupt:
        return 130
    requests[0].line = shlex.join(["gptoss", *arguments])
    return _carry_out(requests[0])


def _carry_out(request) -> int:
    """Load the settings, run the command, and report the only way errors are reported."""
    from dataclasses import replace

    from ..console import out
    from ..errors import GptossError
    from ..load import load

    out.mode, out.verbose = request.mode, request.verbose
    if os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        out.mode = "silent"  # of several processes, one speaks
    _prepare(request.verbose)
    _end_on_sigterm()
    spec = request.command
    try:
        loaded = load(spec.settings, spec.name, flags=request.flags, config=request.config)
        # A pipeline runs here and sends its stages.
        if getattr(loaded.settings, "modal", False) and spec.name != "pipeline":
            from .on_modal import run_on_modal

            return run_on_modal(request, loaded)
        spec.run(loaded.settings, replace(loaded, line=request.line))
        return 0
    except GptossError as error:
        if os.environ.get("GPTOSS_DEBUG") == "1":
            raise
        out.error(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt as stop:
        out.error(str(stop) or "interrupted", getattr(stop, "hint", None))
        return 130
    except BrokenPipeError:
        # The reader (`head`, say) went away: nothing is wrong, but Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("GPTOSS_DEBUG") == "1":
            raise
        if "No space left on device" in str(error):  # Rust's libraries raise no OSError
            out.error("the disk is full", "make room; gptoss resume RUN goes on with a run")
        else:
            out.error(f"{type(error).__name__}: {error}", "GPTOSS_DEBUG=1 shows the traceback")
        return 1


def _end_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that it removes what it had half written."""
    if threading.current_thread() is not threading.main_thread():
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("ended by SIGTERM")

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, stop)


def _prepare(verbose: bool) -> None:
    """Set what the libraries read when they load; keep their own bars and notices away."""
    # OpenMP threads that wait for one another spin; on a CPU that others use too, 20 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not verbose:
        # What the libraries will change one day is no news to who trains today.
        warnings.filterwarnings("ignore", category=FutureWarning)
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def run() -> None:
    """Console script."""
    sys.exit(main())
