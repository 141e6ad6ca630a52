"""log.txt: what the libraries log and warn about during a run, kept off stderr.

Long lines are cut, because some libraries log whole prompts; repeated warnings appear once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def log_file(
    path: Path, on_warning: Callable[[str], None] | None = None
) -> Iterator[logging.Logger]:
    """Collect what the libraries log and warn about in `path` meanwhile, instead of on stderr.

    `on_warning` gets this program's own warnings too: those are for the person who watches.
    """
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.addFilter(_Once())
    handler.setFormatter(_ShortFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    own = logging.getLogger("gptoss_tools")
    roots = [logging.getLogger()]
    roots += [
        logger
        for name in ("transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub")
        if not (logger := logging.getLogger(name)).propagate
    ]
    muted = [(h, h.level) for logger in roots[1:] for h in logger.handlers]
    levels = [(logger, logger.level) for logger in [*roots[1:], own]]
    for others, _ in muted:
        others.setLevel(max(others.level, logging.ERROR))
    for logger, _ in levels:
        logger.setLevel(logging.INFO if logger is own else logging.WARNING)
    for logger in roots:
        logger.addHandler(handler)
    teller = _Teller(on_warning) if on_warning else None
    if teller:
        own.addHandler(teller)
    logging.captureWarnings(True)
    try:
        yield own
    finally:
        logging.captureWarnings(False)
        if teller:
            own.removeHandler(teller)
        for logger in roots:
            logger.removeHandler(handler)
        for logger, level in levels:
            logger.setLevel(level)
        for others, level in muted:
            others.setLevel(level)
        handler.close()


class _Teller(logging.Handler):
    """Hand warnings on as sentences."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        self.tell(f"warning: {record.getMessage()}")


class _Once:
    """Let each Python warning through once: libraries repeat them at every save."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be written."""
        if record.name != "py.warnings":
            return True
        text = record.getMessage()
        new = text not in self.seen
        self.seen.add(text)
        return new


class _ShortFormatter(logging.Formatter):
    """Cut what libraries log whole prompts into."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, at most 2000 characters."""
        line = super().format(record).rstrip()
        return line if len(line) <= 2000 else line[:2000] + " ..."
