"""The Modal app: the image, the volumes, and the functions that run gptoss on a GPU.

    modal run -m gptoss_tools.remote.modal_app::train_remote --max-steps 100
    modal run -m gptoss_tools.remote.modal_app::command_remote doctor

`make_app` builds the same app for another GPU, with secrets or over several machines; `gptoss
COMMAND --modal` does so. Importing this needs no account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import modal

import gptoss_tools
from gptoss_tools.remote import bodies
from gptoss_tools.remote.volume import HUB, HUB_MOUNT, WORK, WORK_MOUNT

NAME = "gptoss"
GPU = "H100"
PYTHON = "3.12"
DAY = 86400  # seconds: the longest that Modal lets one attempt take
LOCK = Path(gptoss_tools.__file__).parents[2] / "requirements.lock"
# The package lies at /root; the caches outlive the container.
ENVIRONMENT = {
    "PYTHONPATH": "/root",
    "PYTHONUNBUFFERED": "1",
    "HF_HOME": f"{HUB_MOUNT}/huggingface",
    "GPTOSS_CACHE": f"{HUB_MOUNT}/gptoss",
}


def make_app() -> modal.App:
    """Return the app, without functions; `add` puts them in."""
    return modal.App(NAME, include_source=False)


def add(
    body: Callable[..., Any],
    app: modal.App,
    gpu: str | None = GPU,
    *,
    nodes: int = 1,
    secrets: Sequence[modal.Secret] = (),
    modules: Sequence[str] = (),
) -> modal.Function:
    """Make `body` a function of `app` that runs on `gpu` (`H100`, `A100-80GB`, `H100:8`).

    With `nodes` above 1 it runs on that many machines together. `modules` are the user's own, sent
    along with the package. A failed attempt is tried again, up to 10 times.
    """
    decorate = app.function(
        image=make_image(modules),
        gpu=gpu,
        secrets=list(secrets),
        volumes={
            HUB_MOUNT: modal.Volume.from_name(HUB, create_if_missing=True),
            WORK_MOUNT: modal.Volume.from_name(WORK, create_if_missing=True),
        },
        timeout=DAY,
        retries=modal.Retries(max_retries=10, initial_delay=10.0, backoff_coefficient=1.0),
    )
    return decorate(modal.clustered(size=nodes)(body) if nodes > 1 else body)


def make_image(modules: Sequence[str] = ()) -> modal.Image:
    """Return the image: the locked packages where the lock file is, else what the package needs."""
    image = modal.Image.debian_slim(python_version=PYTHON)
    if LOCK.is_file():
        image = image.pip_install_from_requirements(str(LOCK))
    else:
        image = image.pip_install(*requirements())
    skip = ["**/__pycache__", "**/*.pyc"]
    image = image.env(ENVIRONMENT)
    return image.add_local_python_source("gptoss_tools", *modules, ignore=skip)


def requirements() -> list[str]:
    """Return what the installed package needs, without its extras."""
    return [need for need in metadata.requires("gptoss-tools") or [] if "extra ==" not in need]


app = make_app()
train_remote = add(bodies.train_remote, app)
evaluate_remote = add(bodies.evaluate_remote, app)
infer_remote = add(bodies.infer_remote, app)
command_remote = add(bodies.command_remote, app)
