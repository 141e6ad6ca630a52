"""A model that grades answers, at any endpoint that speaks OpenAI's chat API.

The `openai` package does the talking (key, timeouts, waiting between tries, Retry-After); this adds
what a training needs beside it: JSON that is checked, one budget of tries for busy, broken and
unreadable, judgements kept on disk, and counters. Leaves out what is asked (rewards.rubric).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from gptoss_tools.errors import ConfigError, MachineError, RewardError, first_line
from gptoss_tools.rewards.judgements import Judgements, content_key
from gptoss_tools.rewards.replies import Reply
from gptoss_tools.settings import JudgeSettings

# What an endpoint may refuse with 400 or 422, and is then asked without.
_OPTIONAL = ("response_format", "temperature", "max_completion_tokens")
# After an answer that could not be read: the same words again would help nobody.
_WARMER = 0.7
_NO_KEY = "no-key"
# So many failures without a success, and the rest of a batch is not tried.
_DEAD = 8


@dataclass(frozen=True)
class Question:
    """What the judge is told; `form` is the JSON object that its answer must be."""

    system: str
    user: str
    form: type[BaseModel]


class Judge:
    """Asks a judge many questions at a time, and counts what that took."""

    def __init__(self, settings: JudgeSettings):
        """Check the settings; nothing is sent.

        Raises ConfigError on a setting that is missing or wrong, MachineError without a key for
        OpenAI's own endpoint. The key is read by `openai`, from OPENAI_API_KEY.
        """
        if not settings.judge_model:
            raise ConfigError(
                "a reward needs a judge, and judge_model names none",
                hint="--judge-model NAME; --judge-url http://localhost:8000/v1 for your own",
            )
        if settings.judge_url and not _is_address(settings.judge_url):
            raise ConfigError("judge_url is not of the form http://HOST:PORT/v1")
        self.settings = settings
        self.kept = Judgements(settings.judge_cache)
        self.last_error = ""
        self._refused: frozenset[str] = frozenset()
        self._asked = self._requests = self._failures = self._cached = 0
        self._tokens_in = self._tokens_out = 0
        self._client()

    def ask(self, questions: Sequence[Question]) -> list[BaseModel | None]:
        """The answers in order, None where the judge failed (`last_error` says how).

        Blocks, inside a running event loop too: the asking has a thread of its own, which ends
        with the call, at once if that is interrupted. Equal questions are asked once. Raises
        RewardError where it answered nothing at all: neither time nor a GPU should wait for that.
        """
        from anyio.from_thread import start_blocking_portal

        keys = [self._key(question) for question in questions]
        by_key = dict(zip(keys, questions, strict=True))
        answers = {key: self.kept.get(key, question.form) for key, question in by_key.items()}
        unknown = {key: by_key[key] for key, answer in answers.items() if answer is None}
        self._asked += len(unknown)
        self._cached += len(questions) - len(unknown)
        if unknown:
            with start_blocking_portal("asyncio", name="judge") as portal:
                answers |= portal.call(self._ask_all, unknown)
        failed = sum(answers[key] is None for key in keys)
        self._failures += failed
        # Of a batch that is mostly known, a few failures are no sign of a dead judge.
        if unknown and all(answers[key] is None for key in unknown) and 2 * failed >= len(keys):
            raise RewardError(
                f"the judge {self.settings.judge_model} failed on every answer of a batch "
                f"({failed}): {self.last_error}",
                hint="check judge_url and judge_model",
            )
        return [answers[key] for key in keys]

    def figures(self) -> dict[str, float]:
        """What this judge has been asked so far, and what it cost by `judge_prices`."""
        read, written = self.settings.judge_prices
        return {
            "judge/requests": float(self._requests),
            "judge/retries": float(max(0, self._requests - self._asked)),
            "judge/failures": float(self._failures),
            "judge/cached": float(self._cached),
            "judge/tokens_in": float(self._tokens_in),
            "judge/tokens_out": float(self._tokens_out),
            "judge/cost": (self._tokens_in * read + self._tokens_out * written) / 1e6,
        }

    async def _ask_all(self, unknown: Mapping[str, Question]) -> dict[str, BaseModel | None]:
        free = asyncio.Semaphore(self.settings.judge_concurrency)
        enough = max(self.settings.judge_concurrency, _DEAD)
        done: list[bool] = []

        async def one(key: str, question: Question) -> BaseModel | None:
            # Held while waiting to try again, too: a busy judge is left alone.
            async with free:
                if len(done) >= enough and not any(done):
                    return None
                answer = await self._ask(client, question)
                done.append(answer is not None)
            if answer is not None:
                self.kept.put(key, answer)
            return answer

        async with self._client() as client:
            answers = await asyncio.gather(*(one(*each) for each in unknown.items()))
        return dict(zip(unknown, answers, strict=True))

    async def _ask(self, client: Any, question: Question) -> BaseModel | None:
        """One answer within the budget of tries, whatever uses them up."""
        import openai

        tries = 1 + self.settings.judge_retries
        without = self._refused
        temperature = 0.0
        while tries > 0:
            body = self._body(question, temperature, without)
            patient = client.with_options(max_retries=tries - 1)
            try:
                raw = await patient.chat.completions.with_raw_response.create(**body)
            except openai.OpenAIError as error:
                refused = _refused(error, body)
                if not refused:
                    causes = [error, *([error.__cause__] if error.__cause__ else [])]
                    self._note(": ".join(map(first_line, causes)), client)
                    return None
                without |= refused
                continue
            self._refused |= without  # these were refused, and not the prompt
            tries -= 1 + raw.retries_taken
            try:
                reply = Reply.model_validate_json(raw.content)
                self._tokens_in += reply.tokens[0]
                self._tokens_out += reply.tokens[1]
                return reply.read(question.form)
            except ValidationError as error:
                self._note(f"its answer cannot be read: {error.errors()[0]['msg']}", client)
                temperature = _WARMER
        return None

    def _body(
        self, question: Question, temperature: float, without: frozenset[str]
    ) -> dict[str, Any]:
        length = self.settings.judge_max_tokens
        schema = {
            "name": question.form.__name__,
            "strict": True,
            "schema": question.form.model_json_schema(),
        }
        body = {
            "model": self.settings.judge_model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            "max_completion_tokens": length,
            "temperature": temperature,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        if "max_completion_tokens" in without:
            body["max_tokens"] = length
        return {name: value for name, value in body.items() if name not in without}

    def _key(self, question: Question) -> str:
        return content_key(self._body(question, 0.0, frozenset()))

    def _client(self) -> Any:
        """A client for one event loop; making one also checks that there is a key."""
        import openai

        async def count(request: Any) -> None:
            self._requests += 1

        def make(api_key: str | None) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(
                api_key=api_key,
                base_url=self.settings.judge_url,
                timeout=self.settings.judge_timeout,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]}),
            )

        try:
            client = make(None)
            if not client.api_key.isascii():
                raise MachineError(
                    "OPENAI_API_KEY holds a character that no key has", hint="set it again"
                )
            return client
        except ValueError as error:  # a proxy of a kind that is not known, say
            raise ConfigError(f"the judge cannot be reached like this: {error}") from error
        except openai.OpenAIError as error:
            if self.settings.judge_url is None:
                raise MachineError(
                    f"the judge {self.settings.judge_model} needs a key",
                    hint="set OPENAI_API_KEY, or name a judge of your own with --judge-url",
                ) from error
            return make(_NO_KEY)

    def _note(self, what: str, client: Any) -> None:
        """Keep an error for people; an endpoint may echo the key in one."""
        key = client.api_key
        self.last_error = (what.replace(key, "***") if key else what).strip()[:300]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no such port, or half of an IPv6 address
        return False


def _refused(error: Exception, body: Mapping[str, Any]) -> frozenset[str]:
    """Which of the optional parameters an error is about; empty if asking without cannot help."""
    import openai

    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return frozenset()
    sent = [name for name in _OPTIONAL if name in body]
    named = [name for name in sent if name in str(error)]
    return frozenset(named or [name for name in sent if name == "response_format"])
