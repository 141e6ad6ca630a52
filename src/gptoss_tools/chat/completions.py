"""Completion tokens -> Harmony messages by channel.

Reads what gpt-oss generates after a prompt that ends in `<|start|>assistant`. Works on token ids,
because text decoded without special tokens can no longer tell analysis from final. Follows the
lenient reading of openai-harmony: messages parsed before a malformed part are kept. Leaves out what
a message means: chat.actions reads the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptoss_tools.errors import ConfigError

Stop = Literal["return", "end", "call", "endoftext", "none"]

_SPECIALS = ("start", "end", "message", "channel", "constrain", "return", "call", "endoftext")


@dataclass(frozen=True)
class HarmonyTokens:
    """Ids of the special tokens that give a completion its structure."""

    start: Any
    end: Any
    message: Any
    channel: Any
    constrain: Any
    return_: Any
    call: Any
    endoftext: Any

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> HarmonyTokens:
        """Look the ids up by name with `convert_tokens_to_ids`; ConfigError if one is not there."""
        unknown = getattr(tokenizer, "unk_token_id", None)
        ids = []
        for name in _SPECIALS:
            found = tokenizer.convert_tokens_to_ids(f"<|{name}|>")
            if found is None or found == unknown:
                raise ConfigError(
                    f"the tokenizer has no <|{name}|> token, so it is not a gpt-oss tokenizer",
                    hint="use the tokenizer that belongs to the gpt-oss model",
                )
            ids.append(int(found))
        return cls(*ids)

    @property
    def stops(self) -> dict[Any, Stop]:
        """Tokens that end a generation, with the names they get in `Completion.stop`."""
        return {self.return_: "return", self.call: "call", self.endoftext: "endoftext"}


_AS_TEXT = HarmonyTokens(*(f"<|{name}|>" for name in _SPECIALS))
_SPLIT = re.compile(r"(<\|(?:" + "|".join(_SPECIALS) + r")\|>)")


@dataclass(frozen=True)
class Message:
    """One message; `channel` is None where the completion named none, `complete` False if cut."""

    channel: str | None
    content: str
    recipient: str | None = None
    role: str = "assistant"
    content_type: str | None = None
    complete: bool = True


@dataclass(frozen=True)
class Completion:
    """Messages in order, and what stopped the generation (`none`: it hit the length limit)."""

    messages: tuple[Message, ...]
    stop: Stop

    @property
    def final(self) -> str | None:
        """Content of the last assistant message in the final channel, None without one."""
        for message in reversed(self.messages):
            if message.role == "assistant" and message.channel == "final":
                return message.content
        return None

    def channel_text(self, channel: str | None) -> str:
        """All text of one channel, messages joined by a blank line."""
        return "\n\n".join(m.content for m in self.messages if m.channel == channel)

    def transcript(self) -> str:
        """The messages for people to read, each under its channel's name."""
        return "\n".join(f"[{m.channel or 'no channel'}] {m.content}" for m in self.messages)


def parse_completion(
    completion_ids: Iterable[Any],
    tokens: HarmonyTokens,
    decode: Callable[[list[Any]], str],
) -> Completion:
    """Split generated ids (prompt and padding removed) into messages; never raises on garbage.

    `decode` turns a list of ids into text and must keep special tokens visible, so that a channel
    marker inside analysis stays text. The first return, call or endoftext token ends the reading.
    """
    ids = [i if isinstance(i, str) else int(i) for i in completion_ids]
    stops = tokens.stops
    stop: Stop = "none"
    for position, token in enumerate(ids):
        if token in stops:
            stop = stops[token]
            ids = ids[:position]
            break
    messages: list[Message] = []
    at = 0
    head = "assistant"
    if ids[:1] == [tokens.start]:
        head, at = "", 1
    while at < len(ids):
        body = _find(ids, (tokens.message, tokens.end), at)
        header = ids[at:body]
        if body == len(ids) or ids[body] == tokens.end:
            # No <|message|>: not a message, but people want to see what was said instead.
            messages.append(Message(None, decode(header), role=head, complete=False))
            close = body
        else:
            close = _find(ids, (tokens.end,), body + 1)
            content = decode(ids[body + 1 : close])
            complete = close < len(ids) or stop != "none"
            messages.append(_message(head, header, content, complete, tokens, decode))
        at = close + 1
        if close == len(ids) - 1 and stop == "none":
            stop = "end"
        if ids[at : at + 1] != [tokens.start]:
            break  # nothing, or something that is no message: what was read so far stands
        head, at = "", at + 1
    return Completion(tuple(messages), stop)


def split_text(text: str) -> Completion:
    """The same reading for logged text in which the special tokens are still visible."""
    return parse_completion([p for p in _SPLIT.split(text) if p], _AS_TEXT, "".join)


def _find(ids: Sequence[Any], wanted: tuple[Any, ...], begin: int) -> int:
    for position in range(begin, len(ids)):
        if ids[position] in wanted:
            return position
    return len(ids)


def _message(
    head: str,
    header: list[Any],
    content: str,
    complete: bool,
    tokens: HarmonyTokens,
    decode: Callable[[list[Any]], str],
) -> Message:
    """Read `role to=recipient <|channel|>name to=recipient <|constrain|>type` leniently."""
    mark = _find(header, (tokens.channel,), 0)
    words = (head + decode(header[:mark])).split()
    after = header[mark + 1 :]
    typed = _find(after, (tokens.constrain,), 0)
    tail = decode(after[:typed]).split()
    recipients = [w[3:] for w in words + tail if w.startswith("to=")]
    words = [w for w in words if not w.startswith("to=")]
    tail = [w for w in tail if not w.startswith("to=")]
    content_type = decode(after[typed + 1 :]).strip() or " ".join(tail[1:])
    return Message(
        channel=tail[0] if tail else None,
        content=content,
        recipient=recipients[0] if recipients else None,
        role=" ".join(words),
        content_type=content_type or None,
        complete=complete,
    )
