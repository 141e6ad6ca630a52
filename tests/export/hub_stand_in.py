"""A stand-in of the Hub's HTTP endpoints on this machine: what an upload calls, and no more.

Accounts and scopes, repositories, the preupload question, git commits, LFS (batch, upload whole or
in parts, verify) and Xet's storage (token, xorbs, shards). Everything is kept in memory. What the
Hub does is read from huggingface_hub's own requests and https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ORG = {"name": "firm", "roleInOrg": "read"}
FINE = {
    "global": [],
    "scoped": [{"entity": {"type": "user", "name": "me"}, "permissions": ["repo.write"]}],
}
FINE_READ = {"global": [], "scoped": [{**FINE["scoped"][0], "permissions": ["repo.content.read"]}]}
TOKENS: dict[str, dict[str, Any]] = {
    "hf_write": {"role": "write"},
    "hf_read": {"role": "read"},
    "hf_fine": {"role": "fineGrained", "fineGrained": FINE},
    "hf_fine_read": {"role": "fineGrained", "fineGrained": FINE_READ},
}


@dataclass
class State:
    """What the stand-in holds and has seen.

    `refuse` maps a part of a path to the status it gets; `hold` maps one to the number of requests
    that pass before the next one waits for `released`, having set `reached`.
    """

    threshold: int = 1000
    part_size: int | None = None
    refuse: dict[str, int] = field(default_factory=dict)
    hold: dict[str, int] = field(default_factory=dict)
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    repositories: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> path -> oid
    content: dict[str, bytes] = field(default_factory=dict)  # oid -> bytes
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    xorbs: dict[str, int] = field(default_factory=dict)
    shards: int = 0
    messages: list[str] = field(default_factory=list)
    received: int = 0  # bytes of objects, parts and xorbs

    def files(self, repo: str = "me/it") -> dict[str, bytes]:
        """The files of a repository; those in Xet's storage are not unpacked: b"" for them."""
        return {p: self.content.get(oid, b"") for p, oid in self.repositories[repo].items()}

    def count(self, method: str, part: str) -> int:
        return sum(m == method and part in path for m, path in self.seen)


class Hub(BaseHTTPRequestHandler):
    """One request: routed by its path."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status: int, body: Any = None, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return content

    def do_GET(self):
        self.route()

    do_POST = do_PUT = do_HEAD = do_GET

    def route(self) -> None:
        state, path = self.server.state, urlsplit(self.path).path
        state.seen.append((self.command, self.path))
        content = self.body()
        for part, status in state.refuse.items():
            if part in path:
                return self.reply(status, {"error": "refused"}, X_Error_Message="refused")
        for part in [part for part in state.hold if part in path]:
            state.hold[part] -= 1
            if state.hold[part] < 0:
                state.reached.set()
                state.released.wait(60)
        if path.startswith("/store/"):  # signed addresses: no token
            return self.put_object(path, content)
        if path == "/complete":
            return self.complete(json.loads(content))
        if path.startswith("/cas/"):
            return self.cas(path.removeprefix("/cas"), content)
        token = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if token is None:
            return self.reply(401, {"error": "Invalid credentials"})
        if path == "/api/whoami-v2":
            auth = {"type": "access_token", "accessToken": {"displayName": "t", **token}}
            return self.reply(200, {"type": "user", "name": "me", "orgs": [ORG], "auth": auth})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if token["role"] == "read" or token.get("fineGrained") == FINE_READ:
            return self.reply(403, {"error": "you may not"})
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        if path.endswith("/objects/batch"):
            return self.batch(json.loads(content))
        if path.endswith("/verify"):
            return self.reply(200 if json.loads(content)["oid"] in state.content else 404)
        repo = "/".join(path.split("/")[3:5])
        if repo not in state.repositories:
            return self.reply(404, {"error": "no such"}, X_Error_Code="RepoNotFound")
        if "/xet-write-token/" in path:
            return self.reply(
                200,
                {"casUrl": f"{state_address(self)}/cas", "accessToken": "x", "exp": 4102444800},
                X_Xet_Cas_Url=f"{state_address(self)}/cas",
                X_Xet_Access_Token="x",
                X_Xet_Token_Expiration="4102444800",
            )
        if "/preupload/" in path:
            return self.preupload(repo, json.loads(content))
        if "/commit/" in path:
            return self.commit(repo, content)
        return self.reply(200, {"id": repo, "sha": "0" * 40, "siblings": [], "private": True})

    def create(self, asked: dict) -> None:
        state = self.server.state
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{state_address(self)}/{name}", "name": name}
        if name in state.repositories:
            return self.reply(409, answer | {"error": "You already created this model repo"})
        state.created.append(asked)
        state.repositories[name] = {}
        return self.reply(200, answer)

    def preupload(self, repo: str, asked: dict) -> None:
        state = self.server.state
        rows = []
        for file in asked["files"]:
            row = {"path": file["path"], "shouldIgnore": False}
            row["uploadMode"] = "lfs" if file["size"] > state.threshold else "regular"
            rows.append(row | {"oid": state.repositories[repo].get(file["path"])})
        self.reply(200, {"files": rows})

    def commit(self, repo: str, content: bytes) -> None:
        state, oid = self.server.state, "1" * 40
        lines = [json.loads(line) for line in content.splitlines() if line.strip()]
        for value in (line["value"] for line in lines if line["key"] == "file"):
            data = base64.b64decode(value["content"])
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            state.content[git] = data
            state.repositories[repo][value["path"]] = git
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            if value["oid"] not in state.content and not state.shards:
                return self.reply(400, {"error": "LFS pointer to a file that does not exist"})
            state.repositories[repo][value["path"]] = value["oid"]
        state.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
        address = f"{state_address(self)}/{repo}/commit/{oid}"
        return self.reply(200, {"success": True, "commitOid": oid, "commitUrl": address})

    def batch(self, asked: dict) -> None:
        state, rows = self.server.state, []
        for row in asked["objects"]:
            oid, size = row["oid"], row["size"]
            if oid not in state.content:
                upload: dict[str, Any] = {"href": f"{state_address(self)}/store/{oid}"}
                if state.part_size is not None:
                    parts = range(1, -(-size // state.part_size) + 1)
                    upload["header"] = {str(n): f"{upload['href']}?part={n}" for n in parts}
                    upload["header"]["chunk_size"] = str(state.part_size)
                    upload["href"] = f"{state_address(self)}/complete"
                verify = {"href": f"{state_address(self)}/verify"}
                row = row | {"actions": {"upload": upload, "verify": verify}}
            rows.append(row)
        self.reply(200, {"transfer": "basic", "objects": rows})

    def put_object(self, path: str, content: bytes) -> None:
        state, oid = self.server.state, path.removeprefix("/store/")
        state.received += len(content)
        part = parse_qs(urlsplit(self.path).query).get("part")
        if part:
            state.parts.setdefault(oid, {})[int(part[0])] = content
        elif hashlib.sha256(content).hexdigest() == oid:
            state.content[oid] = content
        self.reply(200, ETag=f'"{len(content)}"')

    def complete(self, asked: dict) -> None:
        parts = self.server.state.parts[asked["oid"]]
        whole = b"".join(parts[row["partNumber"]] for row in asked["parts"])
        good = hashlib.sha256(whole).hexdigest() == asked["oid"]
        self.server.state.content |= {asked["oid"]: whole} if good else {}
        self.reply(200 if good else 400)

    def cas(self, path: str, content: bytes) -> None:
        state = self.server.state
        if "/xorbs/" in path:
            name = path.rsplit("/", 1)[-1]
            self.reply(200, {"was_inserted": name not in state.xorbs})
            state.xorbs[name] = len(content)
            state.received += len(content)
        elif path.endswith("/v1/shards"):  # without v2 the client takes this one
            state.shards += 1
            self.reply(200, {"result": 1})
        else:
            self.reply(404)


def state_address(handler: Hub) -> str:
    return f"http://127.0.0.1:{handler.server.server_port}"


class Server(ThreadingHTTPServer):
    """Quiet about clients that are gone: tests kill them."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving():
    """Serve until the block ends; yields (address, state)."""
    server = Server(("127.0.0.1", 0), Hub)
    server.state = State()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.state
    finally:
        server.shutdown()
        server.server_close()
