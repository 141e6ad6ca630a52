"""Uploads with the real client against a stand-in of the Hub's HTTP endpoints on this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.export.hub import model_card, push, require_push


def test_no_token_is_said_first_and_ends_with_exit_code_3(tmp_path):
    with pytest.raises(MachineError, match="token") as caught:
        require_push(None, None)
    assert caught.value.exit_code == 3
    with pytest.raises(MachineError):
        push(tmp_path, "me/it", token=None)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_broken_repository_name_is_a_wrong_request():
    with pytest.raises(ConfigError) as caught:
        require_push("hf_x", None)
    assert "HF_REPO_ID" in caught.value.hint
    with pytest.raises(ConfigError, match="no name"):
        require_push("hf_x", "me/it/there")


def test_the_card_names_base_settings_and_rounding():
    record = {
        "base": "openai/gpt-oss-20b",
        "ratio": 0.001,
        "kept": 0.53,
        "warnings": ["rounding keeps little"],
        "adapter_sha256": "ab12",
        "training": {"lora_r": 4, "data_sha256": "cd34", "action_pattern": "a|b"},
    }
    card = model_card("me/it", record)
    assert "base_model: openai/gpt-oss-20b" in card
    for part in ("| lora_r | 4 |", "cd34", "a\\|b", "53.0%", "rounding keeps little", "ab12"):
        assert part in card
    assert "base_model:" not in model_card("me/it", {"base": "tiny-0123"})  # not on the Hub


class Hub(BaseHTTPRequestHandler):
    """Just what create_repo and upload_folder call, holding commits in memory."""

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.server.seen.append(("GET", self.path))
        self.reply(200, {"id": "me/it", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        self.server.seen.append(("POST", self.path))
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.reply(403, {"error": "you may not"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.reply(200, {"url": f"{self.server.address}/me/it", "name": "me/it"})
        elif self.path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.reply(
                200,
                {
                    "files": [
                        {"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names
                    ]
                },
            )
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            for line in lines:
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                else:
                    self.server.messages.append(line["value"]["summary"])
            self.reply(
                200,
                {
                    "success": True,
                    "commitOid": "1" * 40,
                    "commitUrl": f"{self.server.address}/me/it/commit/{'1' * 40}",
                },
            )
        else:
            self.reply(404, {"error": f"no {self.path}"})


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.seen, server.created, server.files, server.messages = [], [], {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PUSH = """
import json, sys
from pathlib import Path
from gptoss_tools.errors import GptossError
from gptoss_tools.export.hub import push
try:
    print(push(Path(sys.argv[1]), "me/it", token=sys.argv[2], commit_message="Deliver"))
except GptossError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def run_push(folder, token, address):
    """A process of its own: huggingface_hub reads its endpoint and offline switch at import."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "0"}
    return subprocess.run(
        [sys.executable, "-c", PUSH, str(folder), token],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "export.json").write_text(json.dumps({"base": "openai/gpt-oss-20b"}))
    (folder / ".hidden").write_text("stays")
    return folder


def test_the_real_client_creates_a_private_repository_and_sends_every_file(hub, folder):
    done = run_push(folder, "hf_good", hub.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/it")
    assert hub.created[0]["name"] == "it" and hub.created[0]["organization"] == "me"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert set(hub.files) == {"config.json", "model.safetensors", "export.json", "README.md"}
    assert hub.files["model.safetensors"] == bytes(range(256))
    assert b"base_model: openai/gpt-oss-20b" in hub.files["README.md"]
    assert any("Deliver" in message for message in hub.messages)


def test_a_token_that_may_not_write_is_said_in_one_sentence(hub, folder):
    done = run_push(folder, "hf_bad", hub.address)
    assert done.returncode == 3
    assert "does not let this token write to me/it" in done.stderr
    assert not hub.files


def test_an_unreachable_hub_is_said_in_one_sentence(folder):
    done = run_push(folder, "hf_good", "http://127.0.0.1:9")
    assert done.returncode == 3, done.stderr
    assert "cannot be reached" in done.stderr
