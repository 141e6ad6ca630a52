"""What Colab and Kaggle offer a notebook: secrets and Google Drive. Elsewhere there are neither."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from gptoss_tools.errors import first_line
from gptoss_tools.models.names import TINY
from gptoss_tools.notebook.settings import SessionSettings

DRIVE = Path("/content/drive")
VARIABLES = {
    "hf_token": "HF_TOKEN",
    "wandb_api_key": "WANDB_API_KEY",
    "openai_api_key": "OPENAI_API_KEY",
}
"""The setting of each credential, and the variable where its library looks for it."""


@dataclass(frozen=True)
class Credential:
    """A secret that some library needs, and where it was found; its value is never shown."""

    variable: str
    source: str
    value: SecretStr


def find_credentials(config: SessionSettings) -> tuple[list[Credential], list[str]]:
    """Look for what this session needs: config, environment, Colab, Kaggle, in this order.

    Returns what was found and sentences about what was not; no sentence holds a value.
    """
    found, notes = [], []
    for setting in _needed(config):
        variable = VARIABLES[setting]
        own: SecretStr | None = getattr(config, setting)
        for source, ask in (
            ("config", lambda own=own: own.get_secret_value() if own else None),
            ("environment", lambda variable=variable: os.environ.get(variable)),
            ("Colab secrets", lambda variable=variable: _colab_secret(variable)),
            ("Kaggle secrets", lambda variable=variable: _kaggle_secret(variable)),
        ):
            try:
                value = ask()
            except Exception as error:  # not there, not granted, not connected: each has its own
                notes.append(f"{source} did not give {variable}: {first_line(error)}")
                continue
            if value:
                found.append(Credential(variable, source, SecretStr(value)))
                break
        else:
            notes.append(f"{variable} was not found")
    return found, notes


def _needed(config: SessionSettings) -> list[str]:
    """The credentials that something in this session may ask for."""
    own_judge = config.judge_url is not None and config.openai_api_key is None
    needs = {
        "hf_token": config.model != TINY and not Path(config.model).is_dir(),
        "wandb_api_key": config.report_to == "wandb",
        # A judge of one's own mostly has no key, and OpenAI's is not for it.
        "openai_api_key": "rubric" in config.reward and not own_judge,
    }
    return [setting for setting, needed in needs.items() if needed]


def _colab_secret(name: str) -> str | None:
    userdata = _module("google.colab.userdata")
    return userdata.get(name) if userdata else None


def _kaggle_secret(name: str) -> str | None:
    secrets = _module("kaggle_secrets")
    return secrets.UserSecretsClient().get_secret(name) if secrets else None


def mount_drive(notice: Callable[[str], None]) -> Path | None:
    """Mount Google Drive and return this program's folder on it; None where there is no Drive."""
    drive = _module("google.colab.drive")
    if drive is None:
        notice("there is no Google Drive here: files stay on this machine")
        return None
    drive.mount(str(DRIVE))
    folder = DRIVE / "MyDrive" / "gptoss"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None
