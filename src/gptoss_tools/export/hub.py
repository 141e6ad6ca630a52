"""Upload an export to the Hugging Face Hub, private unless asked otherwise, with a model card.

One call of `upload_folder` for every size: since huggingface_hub 2 it streams and commits in
batches, and in every version it asks the Hub first which contents it holds already, so an upload
that broke off is repeated at the price of what is missing. (The separate `upload_large_folder` of
1.x is gone in 2.) Token and repository come from the caller: this reads no environment.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from gptoss_tools.core.publish import write_text
from gptoss_tools.errors import ConfigError, DataError, GptossError, MachineError, first_line
from gptoss_tools.export.card import model_card

_RECORD = "export.json"
_CARD = "README.md"
_MODELS = (_RECORD, "config.json", "adapter_config.json")
_WRITES = {"repo.write", "repo.content.write"}
_HTTP = ("httpx", "httpx2", "httpcore", "requests")


def require_push(token: str | None, repo_id: str | None, *, client: HfApi | None = None) -> str:
    """Check, before any work, that an upload may write to a place; return the place.

    Asks the Hub whose token it is and what it may do. Raises MachineError without a token, with one
    that may not write there, and where the Hub cannot be asked; ConfigError without a well-formed
    repository id.
    """
    place = _require_place(token, repo_id)
    with _said_clearly(place, "nothing was done"):
        account = (client or HfApi(token=token)).whoami(token=token)
    if reason := _why_not(account, place):
        raise MachineError(
            f"this Hugging Face token may not write to {place}: {reason}; nothing was done",
            hint="make one with write permission at https://huggingface.co/settings/tokens",
        )
    return place


def _require_place(token: str | None, repo_id: str | None) -> str:
    if not token:
        raise MachineError(
            "an upload needs a Hugging Face token, and none is set; nothing was done",
            hint="set HF_TOKEN to a token with write permission, or run `hf auth login`",
        )
    if not repo_id:
        raise ConfigError(
            "an upload needs the name of a repository; nothing was done",
            hint="pass --repo-id user/name, or set HF_REPO_ID",
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(
            f"{repo_id!r} is no name for a repository: {error}", hint="write it as user/name"
        ) from error
    return repo_id


def _why_not(account: Mapping[str, Any], repo_id: str) -> str | None:
    """Why a token may not write there, None where it may or where only the Hub itself can tell."""
    name = account.get("name")
    owner = repo_id.split("/")[0] if "/" in repo_id else name
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        return "it can only read"
    if token.get("role") == "fineGrained":
        for scope in (token.get("fineGrained") or {}).get("scoped") or ():
            entity = scope.get("entity") or {}
            named = entity.get("name") in (owner, repo_id) or entity.get("type") == "resource-group"
            if named and _WRITES & set(scope.get("permissions") or ()):
                return None
        return f"its scopes give no write access to repositories of {owner}"
    roles = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs") or ()}
    if owner != name and owner not in roles:
        return f"its account, {name}, is no member of {owner}"
    return f"its account, {name}, can only read in {owner}" if roles.get(owner) == "read" else None


def push(
    folder: Path,
    repo_id: str,
    *,
    token: str | None,
    private: bool = True,
    commit_message: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
    client: HfApi | None = None,
) -> str:
    """Create the repository if need be, upload `folder`, return the repository's address.

    Adds a model card, with the figures of `evaluation` (see `card.evaluation_of`), unless the
    folder has one. An existing repository keeps its visibility. A call that broke off can be
    repeated: what has arrived is not sent again. Raises MachineError where the Hub refuses the
    token or cannot be reached, GptossError for whatever else it answers.
    """
    _require_place(token, repo_id)
    folder = Path(folder)
    if not any((folder / name).is_file() for name in _MODELS):
        raise DataError(f"{folder} holds no exported model", hint="gptoss export")
    client = client or HfApi(token=token)
    kept = f"the export is complete in {folder}: `hf upload --private {repo_id} {folder}` goes on"
    with _said_clearly(repo_id, kept):
        url = client.create_repo(repo_id, private=private, exist_ok=True, token=token)
        _add_card(folder, url.repo_id, evaluation)
        client.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=commit_message or "Add export",
            ignore_patterns=[".*"],
            token=token,
        )
    return str(url)


@contextlib.contextmanager
def _said_clearly(repo_id: str, state: str) -> Iterator[None]:
    """Turn what the client raises into one sentence; `state` says what there is to go on from."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise MachineError(
            "the Hub is switched off by HF_HUB_OFFLINE", hint=f"unset it; {state}"
        ) from error
    except GptossError:
        raise
    except Exception as error:
        chain = [error]
        while isinstance(cause := chain[-1].__cause__, Exception):
            chain.append(cause)
        for cause in chain:
            if status := _status(cause):
                raise _refused(status, cause, repo_id, state) from error
        if any(_is_network(cause) for cause in chain):
            said = first_line(chain[-1])
            raise MachineError(f"the Hub cannot be reached: {said}", hint=state) from error
        if isinstance(error, RuntimeError | OSError):  # RuntimeError: all that hf_xet ever raises
            said = first_line(error)
            raise GptossError(f"the upload to {repo_id} broke off: {said}", hint=state) from error
        raise


def _is_network(error: Exception) -> bool:
    """Whether a socket or an HTTP library raised it; which one is huggingface_hub's choice."""
    ours = isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    return ours or type(error).__module__.split(".")[0] in _HTTP


def _status(error: Exception) -> int | None:
    """The Hub's answer where it was a refusal; hf_xet tells it in words only."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    told = re.search(r"HTTP status \w+ error \((\d{3})", str(error))
    return int(told[1]) if told else None


def _refused(status: int, error: Exception, repo_id: str, state: str) -> GptossError:
    if status == 401:
        return MachineError(
            "the Hub does not know this token (401): it is wrong or was revoked",
            hint=f"set HF_TOKEN to a valid one, or run `hf auth login`; {state}",
        )
    if status == 403:
        return MachineError(
            f"the Hub does not let this token write to {repo_id} (403)",
            hint=f"use a token with write permission for that user or organisation; {state}",
        )
    if status == 404:
        return MachineError(
            f"the Hub finds no repository {repo_id} for this token (404)",
            hint=f"check the name, and that the token may see it; {state}",
        )
    if status >= 500 or status == 429:
        return MachineError(
            f"the Hub is busy or out of order ({status}); try again later", hint=state
        )
    return GptossError(f"the Hub answered {status} for {repo_id}: {first_line(error)}", hint=state)


def _add_card(folder: Path, repo_id: str, evaluation: Mapping[str, Any] | None) -> None:
    if (folder / _CARD).exists():
        return
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    write_text(folder / _CARD, model_card(repo_id, record, evaluation))
