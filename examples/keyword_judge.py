"""A stand-in for a judge, for runs without a network: it counts words and understands nothing.

It speaks as much of OpenAI's chat API as the reward `rubric` uses, and says that a response
satisfies a criterion where it contains at least half of the criterion's longer words. That is
enough to see a training with a judge run from end to end. It is no measure of anything: it does
not see negations or order, and repeating the rubric's words pleases it most.

    python examples/keyword_judge.py --port 8400
    gptoss train-grpo ... --reward rubric --judge-model keywords \\
        --judge-url http://127.0.0.1:8400/v1

In Python: `with KeywordJudge() as judge: ... judge.url ...`.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# As rewards/rubric.py encloses what it asks about: <response-0a1b2c>...</response-0a1b2c>.
PART = r"<{name}-(\w+)>\n(.*?)\n</{name}-\1>"


def satisfied(criterion: str, response: str) -> bool:
    """Whether the response has at least half of the criterion's words of four letters or more."""
    wanted = set(re.findall(r"\w{4,}", criterion.lower()))
    there = set(re.findall(r"\w{4,}", response.lower()))
    return 2 * len(wanted & there) >= max(1, len(wanted))


def judge(question: str) -> dict[str, Any]:
    """Both answers there are: a verdict for each numbered criterion, and a rating of 1 to 10."""
    parts = {}
    for name in ("prompt", "criteria", "response"):
        found = re.search(PART.format(name=name), question, re.DOTALL)
        parts[name] = found[2] if found else ""
    criteria = [line.partition(". ")[2] for line in parts["criteria"].splitlines()]
    verdicts = [satisfied(criterion, parts["response"]) for criterion in criteria]
    # The labels of a rating name faults; having one counts against the response.
    good = [has != (", a fault: " in text) for has, text in zip(verdicts, criteria, strict=True)]
    return {"verdicts": verdicts, "rating": 1 + 9 * sum(good) / max(1, len(good))}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """A chat completion for a request, whose JSON schema says which judgement it wants."""
    question = request["messages"][-1]["content"]
    schema = request.get("response_format", {}).get("json_schema", {}).get("schema", {})
    given = judge(question)
    wanted = {name: given[name] for name in schema.get("properties", {}) if name in given}
    return completion(json.dumps(wanted or {"verdicts": given["verdicts"]}), question)


def completion(content: str, question: str = "") -> dict[str, Any]:
    """The shape of a chat completion; a word counts as a token."""
    read, written = len(question.split()), len(content.split())
    return {
        "id": "chatcmpl-keywords",
        "object": "chat.completion",
        "created": 0,
        "model": "keywords",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
            }
        ],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/chat/completions"):
            self.send({"error": {"message": f"there is no {self.path}"}}, status=404)
        else:
            self.answer(json.loads(body))

    def answer(self, request: dict[str, Any]) -> None:
        self.send(answer(request))

    def send(self, content: Any, status: int = 200, **headers: str) -> None:
        """Answer with JSON, or with bytes as they are."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about each request."""


class KeywordJudge(ThreadingHTTPServer):
    """The server on a loopback port (0: any free one); a context manager that runs it."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, port: int = 0, handler: type[Handler] = Handler):
        super().__init__(("127.0.0.1", port), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> KeywordJudge:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A judge that counts words, for offline runs.")
    parser.add_argument("--port", type=int, default=8400)
    server = KeywordJudge(parser.parse_args().port)
    print(f"judging at {server.url}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
