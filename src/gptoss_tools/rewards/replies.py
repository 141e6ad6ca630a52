"""The part of a chat completion that is read; endpoints differ in everything else."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field

_FENCED = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Reply(BaseModel):
    """What was said, and the tokens it took (0 where the endpoint does not count)."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens read and written."""
        if self.usage is None:
            return 0, 0
        return self.usage.prompt_tokens or 0, self.usage.completion_tokens or 0

    def read(self, form: type[BaseModel]) -> BaseModel:
        """The answer as `form`; ValidationError if it is anything but that JSON.

        The whole answer or nothing: JSON in the midst of prose may be quoted from what is judged.
        """
        text = self.choices[0].message.content or ""
        fenced = _FENCED.fullmatch(text)
        return form.model_validate_json(fenced[1] if fenced else text.strip())
