"""The way back from a Harmony prompt to the messages it was rendered from.

Other models read messages through templates of their own, so a table that was converted for gpt-oss
serves them too. `render` of what comes back gives the same text again.
"""

from __future__ import annotations

import re

from gptoss_tools.chat.harmony import GENERATION_PROMPT, is_harmony, parse_legacy
from gptoss_tools.errors import DataError

_MESSAGE = re.compile(
    r"<\|start\|>(?P<role>system|developer|user|assistant)(?:<\|channel\|>(?P<channel>\w+))?"
    r"<\|message\|>(?P<content>(?:(?!<\|\w+\|>).)*)<\|end\|>",
    re.DOTALL,
)
_HEAD, _TAIL = "# Instructions\n\n", "\n\n"


def messages_of_text(text: str) -> list[dict[str, str]]:
    """Return the messages of a prompt held as text: Harmony, or `system:` and `user:` parts."""
    return read_harmony(text) if is_harmony(text) else parse_legacy(text)


def read_harmony(text: str) -> list[dict[str, str]]:
    """Return the messages of a Harmony prompt, without the system message that gpt-oss itself gets.

    Raises DataError for what only gpt-oss has a place for: tools, other channels than final, an
    answer that has begun.
    """
    body = text.strip().removeprefix("<|startoftext|>").removesuffix(GENERATION_PROMPT)
    messages, at = [], 0
    while at < len(body):
        found = _MESSAGE.match(body, at)
        if found is None:
            raise _foreign(f"{body[at : at + 30]!r} is no plain message")
        at = found.end()
        role, content = found["role"], found["content"]
        if found["channel"] != ("final" if role == "assistant" else None):
            raise _foreign(f"a message of the {role} is in the channel {found['channel']}")
        if role == "system":
            continue
        if role == "developer":
            if not content.startswith(_HEAD) or not content.endswith(_TAIL):
                raise _foreign("its developer message holds more than instructions")
            content = content[len(_HEAD) : -len(_TAIL)]
        messages.append({"role": role, "content": content})
    if not messages:
        raise _foreign("it holds no message")
    return messages


def _foreign(reason: str) -> DataError:
    return DataError(
        f"the Harmony prompt cannot be read back into messages: {reason}",
        hint="this model needs the table as it was before gptoss convert-harmony: name that file",
    )
