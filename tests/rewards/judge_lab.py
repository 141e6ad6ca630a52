"""Judges on loopback that misbehave on command, and answers for them to judge."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gptoss_tools.chat.actions import Decision, Reason
from gptoss_tools.chat.completions import split_text
from gptoss_tools.data.rubrics import RubricItem, dump_rubric
from gptoss_tools.rewards.answered import Answered
from gptoss_tools.rewards.judge import Question
from gptoss_tools.settings import RewardSettings

_STAND_IN = Path(__file__).parents[2] / "examples" / "keyword_judge.py"
_spec = importlib.util.spec_from_file_location("keyword_judge", _STAND_IN)
keyword_judge: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(keyword_judge)

KEY = "sk-not-to-be-seen-anywhere"
Behaviour = Callable[[Any, dict[str, Any]], None]


class _Handler(keyword_judge.Handler):
    def answer(self, request: dict[str, Any]) -> None:
        server: Any = self.server
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers["Authorization"])
            server.times.append(time.monotonic())
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            behave = server.script.pop(0) if server.script else server.otherwise
        try:
            behave(self, request)
        finally:
            with server.lock:
                server.at_once -= 1


class ScriptedJudge(keyword_judge.KeywordJudge):
    """Behaves as `script` says, request by request, and as `otherwise` after its end."""

    def __init__(self, *script: Behaviour, otherwise: Behaviour | None = None):
        super().__init__(handler=_Handler)
        self.script = list(script)
        self.otherwise = otherwise or honest
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client hung up."""


def honest(handler: Any, request: dict[str, Any]) -> None:
    handler.send(keyword_judge.answer(request))


def says(content: Any) -> Behaviour:
    """Answers with this text, or with this JSON, whatever was asked."""
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda handler, request: handler.send(keyword_judge.completion(text, "a b c"))


def sends(content: Any, status: int = 200, **headers: str) -> Behaviour:
    return lambda handler, request: handler.send(content, status, **headers)


def sleeps(seconds: float) -> Behaviour:
    def behave(handler: Any, request: dict[str, Any]) -> None:
        time.sleep(seconds)
        honest(handler, request)

    return behave


def hangs_up(handler: Any, request: dict[str, Any]) -> None:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.wfile.flush()
    handler.connection.close()
    handler.close_connection = True


# The shortest wait that the client accepts, so that tests need not.
AT_ONCE = {"Retry_After_Ms": "1"}
broken = sends({"error": {"message": "out of order"}}, 500, **AT_ONCE)
busy = sends({"error": {"message": "slow down"}}, 429, **AT_ONCE)


def settings(server: Any, **named: Any) -> RewardSettings:
    return RewardSettings(
        **{"judge_model": "keywords", "judge_url": server.url, "judge_timeout": 5.0, **named}
    )


class Word(BaseModel):
    word: str


def question(user: str = "which word?") -> Question:
    return Question("Answer with a word.", user, Word)


ITEMS = [
    RubricItem("names the tank", "Essential"),
    RubricItem("gives a reason", "Important"),
    RubricItem("rambles about weather", "Pitfall", -1.0, positive=False),
]


def answered(
    final: str | None, items: Sequence[RubricItem] = ITEMS, prompt: str = "Which tank?"
) -> Answered:
    said = "<|channel|>analysis<|message|>hm<|end|>"
    if final is not None:
        said += f"<|start|>assistant<|channel|>final<|message|>{final}<|return|>"
    row = {"row": 4, "rubric": dump_rubric(list(items))}
    return Answered(prompt, split_text(said), row, Decision(None, Reason.UNPARSABLE))
