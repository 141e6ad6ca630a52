"""Answers that are read while they are generated: tokens become (channel, text), piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Collection

from gptoss_tools.chat.completions import HarmonyTokens

Piece = tuple[str | None, str]
Decode = Callable[[list[int]], str]


class _Held:
    """Holds tokens back until their text is certain."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.pending: list[int] = []
        self.channel: str | None = None

    def close(self) -> Piece | None:
        """Return what was held back, when no more tokens come."""
        return self._flush(force=True)

    def _flush(self, *, force: bool) -> Piece | None:
        text = self.decode(self.pending)
        # A character of several tokens decodes to U+FFFD until its last one is there.
        if not text or (text.endswith("\ufffd") and not force and len(self.pending) < 8):
            return None
        self.pending = []
        return self.channel, text


class ChannelText(_Held):
    """Reads gpt-oss: markers and headers become no text."""

    def __init__(self, tokens: HarmonyTokens, decode: Decode) -> None:
        super().__init__(decode)
        self.tokens = tokens
        self.header: list[int] = []
        self.in_content = False

    def push(self, token: int) -> Piece | None:
        """Take one token; return the text that is now certain, if any."""
        marks = self.tokens
        if token in (marks.start, marks.end, *marks.stops):
            piece = self._flush(force=True)
            self.header, self.in_content = [], False
            return piece
        if not self.in_content:
            if token != marks.message:
                self.header.append(token)
                return None
            named = marks.channel in self.header
            words = self.header[self.header.index(marks.channel) + 1 :] if named else []
            self.channel = (self.decode(words).split() or [None])[0]
            self.in_content = True
            return None
        self.pending.append(token)
        return self._flush(force=False)


class ThoughtText(_Held):
    """Reads models that think between two tags: what is between them is the analysis.

    `tags` are the tokens of the tags, None where the tags are no tokens: then only `closing`, as
    text, ends a thought that the prompt has begun (`thinking`).
    """

    def __init__(
        self,
        decode: Decode,
        stops: Collection[int],
        tags: tuple[int, int] | None,
        closing: str,
        thinking: bool,
    ) -> None:
        super().__init__(decode)
        self.stops, self.tags, self.closing = stops, tags, closing
        self.channel = "analysis" if thinking else "final"
        self.rest = ""

    def push(self, token: int) -> Piece | None:
        """Take one token; return the text that is now certain, if any."""
        if token in self.stops:
            return self.close()
        if self.tags is not None and token in self.tags:
            piece = self._flush(force=True)
            self.channel = "analysis" if token == self.tags[0] else "final"
            return piece
        self.pending.append(token)
        if self.tags is None and self.channel == "analysis":
            return self._watch()
        return self._flush(force=False)

    def _watch(self) -> Piece | None:
        """Look for the closing tag in the text, and hold back what may be its beginning."""
        thought, found, after = self.decode(self.pending).partition(self.closing)
        if found:
            self.channel, self.pending, self.rest = "final", [], after
            return ("analysis", thought) if thought else None
        if any(thought.endswith(self.closing[:n]) for n in range(1, len(self.closing))):
            return None
        return self._flush(force=False)

    def _flush(self, *, force: bool) -> Piece | None:
        piece = super()._flush(force=force)
        if not self.rest or (piece is None and self.pending):
            return piece
        text, self.rest = self.rest + (piece[1] if piece else ""), ""
        return self.channel, text
