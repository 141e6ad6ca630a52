"""Start a job on Modal: look for the account, send the files, call the function, hand on its end.

Everything that can be refused is refused before anything is sent. Leaves out what is shown
meanwhile: the caller wraps `shown` around it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import modal
from modal.exception import AuthError, NotFoundError

from gptoss_tools.errors import ConfigError, GptossError, MachineError, first_line
from gptoss_tools.remote.bodies import command_remote
from gptoss_tools.remote.job import Job
from gptoss_tools.remote.modal_app import add, make_app
from gptoss_tools.remote.volume import WORK, send
from gptoss_tools.settings import RemoteSettings

SECRETS = ("huggingface-secret", "wandb-secret")


@dataclass(frozen=True)
class Finished:
    """How a job ended: exit code (None: it runs on, detached), standard output, that as JSON."""

    app_id: str
    call_id: str
    exit_code: int | None = None
    stdout: str = ""
    result: dict[str, Any] | None = None


def launch(
    job: Job,
    settings: RemoteSettings,
    *,
    shown: contextlib.AbstractContextManager[Any],
    notice: Callable[[str], None],
) -> Finished:
    """Run `job` on the machine that `settings` ask for; with `detach` only start it.

    Raises MachineError without credentials or connection, GptossError where Modal gave up,
    KeyboardInterrupt when it was interrupted here, which ends it there too.
    """
    require_account()
    modules = _importable(job.modules)
    with _modal_errors("the job on Modal failed"):
        secrets = find_secrets(settings.modal_secrets)
        work = modal.Volume.from_name(WORK, create_if_missing=True)
        notice(f"sending {len(job.uploads)} files, {job.size / 1e6:.1f} MB, to the volume {WORK}")
        send(work.hydrate(), job.uploads)
        app = make_app()
        function = add(
            command_remote,
            app,
            settings.gpu,
            nodes=settings.nodes,
            secrets=secrets,
            modules=modules,
        )
        ended: dict[str, Any] | None = None
        with shown, app.run(detach=settings.detach):
            call, app_id = function.spawn(*job.argv), str(app.app_id)
            if settings.detach:
                return Finished(app_id, call.object_id)
            ended = call.get()
    if ended is None:  # app.run swallows Ctrl-C
        raise KeyboardInterrupt(f"interrupted; what the job wrote is on the volume {WORK}")
    return Finished(app_id, call.object_id, ended["exit_code"], ended["stdout"], ended["result"])


def require_account() -> None:
    """Raise MachineError unless Modal can be reached and takes this machine's credentials."""
    with _modal_errors("Modal cannot be reached", MachineError):
        modal.Client.from_env().hello()


def find_secrets(asked: Sequence[str]) -> list[modal.Secret]:
    """Return the secrets that were asked for, else those of `SECRETS` that the account has."""
    found = []
    for name in asked or SECRETS:
        secret = modal.Secret.from_name(name)
        try:
            found.append(secret.hydrate())
        except NotFoundError as error:
            if asked:
                raise MachineError(
                    f"Modal has no secret `{name}`", hint=f"modal secret create {name} KEY=VALUE"
                ) from error
    return found


@contextlib.contextmanager
def _modal_errors(what: str, kind: type[GptossError] = GptossError) -> Iterator[None]:
    """Turn an error of Modal's client into one of `kind` that says `what`."""
    try:
        yield
    except AuthError as error:
        raise MachineError(
            f"Modal does not know this machine: {first_line(error).partition('. ')[0]}",
            hint="modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
        ) from error
    except modal.Error as error:
        raise kind(f"{what}: {first_line(error)}") from error


def _importable(modules: Sequence[str]) -> Sequence[str]:
    """Return the user's modules; ConfigError for one that is not there, here or on the path."""
    if modules and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"the module {name} is not there to be sent to Modal")
    return modules
