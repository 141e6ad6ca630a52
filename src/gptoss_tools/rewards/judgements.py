"""Judgements that were paid for once: a folder of JSON files, each named by what was asked.

Several processes may share one: files appear whole, and two that write the same one write the same
judgement. What a file says is checked like a fresh answer, so a damaged one is asked for again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gptoss_tools.core.publish import write_text
from gptoss_tools.errors import ConfigError

_log = logging.getLogger(__name__)


def content_key(asked: Any) -> str:
    """The name of a judgement: a hash over everything that decides it, given as JSON values."""
    text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Judgements:
    """The judgements in `folder`, by content_key; without a folder nothing is kept."""

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)
        self._warned = False
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"judge_cache {folder} cannot be made: {error.strerror}",
                hint="name a folder that can be written",
            ) from error

    def get(self, key: str, form: type[BaseModel]) -> BaseModel | None:
        """The judgement as `form` reads it, None if there is none that can be read."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            return form.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            self._warn(f"{path} cannot be read as a judgement; it and its like are asked for again")
            return None

    def put(self, key: str, judgement: BaseModel) -> None:
        """Keep a judgement; a disk that takes none costs money later, not the training now."""
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        try:
            path.parent.mkdir(exist_ok=True)
            write_text(path, judgement.model_dump_json())
        except OSError as error:
            self._warn(f"{path} cannot be written ({error.strerror}); judgements are not kept")

    def _path(self, folder: Path, key: str) -> Path:
        # Two letters of each name make a folder: a long training asks a million times.
        return folder / key[:2] / f"{key}.json"

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(message)
