"""Uploads with the real client against a stand-in of the Hub's HTTP endpoints on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from hub_stand_in import serving

from gptoss_tools.errors import ConfigError, MachineError
from gptoss_tools.export.hub import push, require_push
from gptoss_tools.models.snapshot import fingerprint

WEIGHTS = {name: os.urandom(50_000) for name in ("model-0.safetensors", "model-1.safetensors")}


@pytest.fixture
def hub():
    """(address, state) of the stand-in."""
    with serving() as served:
        yield served


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name, content in WEIGHTS.items():
        (folder / name).write_bytes(content)
    (folder / "export.json").write_text(json.dumps({"base": "openai/gpt-oss-20b"}))
    (folder / ".hidden").write_text("stays")
    return folder


CALL = """
import sys
from pathlib import Path
from gptoss_tools.errors import GptossError
from gptoss_tools.export import hub
try:
    {call}
except GptossError as error:
    print(error, error.hint, sep="\\n", file=sys.stderr)
    sys.exit(error.exit_code)
"""
PUSH = 'print(hub.push(Path(sys.argv[1]), "me/it", token=sys.argv[2], commit_message="Deliver"))'
CHECK = "print(hub.require_push(sys.argv[2], sys.argv[1]))"


def start(call, *arguments, address, home, xet=False, offline=False, token=""):
    """A process of its own: huggingface_hub reads its endpoint and its switches at import."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": str(int(not xet)),
    }
    return subprocess.Popen(
        [sys.executable, "-c", CALL.format(call=call), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def evaluated(base, adapter, tmp_path):
    """A finished run whose adapter was evaluated on its base."""
    run = tmp_path / "runs" / "first"
    shutil.copytree(adapter, run / "adapter")
    record = {"settings": {"model": str(base), "lora_r": 4}, "data": {"sha256": "cd34", "rows": 9}}
    (run / "config.json").write_text(json.dumps(record))
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    policy = hashlib.sha256(f"{fingerprint(base)}".encode() + weights).hexdigest()
    (run / "evaluation").mkdir()
    figures = {"policy_sha256": policy, "n_rows": 144, "n_episodes": 12, "top1": 0.8125}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(figures))
    return run


@pytest.mark.slow
def test_the_command_checks_the_token_first_and_puts_the_evaluation_on_the_card(
    hub, evaluated, base, tmp_path
):
    address, state = hub
    call = "from gptoss_tools.cli.app import main; sys.exit(main(sys.argv[1:]))"
    options = ["--base", base, "--out", tmp_path / "out", "--push", "--repo-id", "me/it"]
    export = ["export", evaluated, *options]
    code, _, complained = run(call, *export, address=address, home=tmp_path, token="hf_read")
    assert code == 3 and "it can only read" in complained
    assert not (tmp_path / "out").exists() and not state.created
    code, _, complained = run(call, *export, address=address, home=tmp_path, token="hf_write")
    assert code == 0, complained
    card = state.files()["README.md"].decode()
    for part in ("On 144 held-out decisions in 12 episodes", "81.2%", "| data_sha256 | cd34 |"):
        assert part in card
    assert str(tmp_path) not in card
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(state.files())


def run(*arguments, **settings) -> tuple[int, str, str]:
    """(exit code, what it printed, what it complained)"""
    process = start(*arguments, **settings)
    said, complained = process.communicate(timeout=120)
    return process.returncode, said.strip(), complained


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


@pytest.mark.parametrize(
    ("token", "place", "reason"),
    [
        ("hf_write", "me/it", None),
        ("hf_write", "it", None),
        ("hf_fine", "me/it", None),
        ("hf_read", "me/it", "it can only read"),
        ("hf_fine_read", "me/it", "its scopes give no write access to repositories of me"),
        ("hf_fine", "firm/it", "its scopes give no write access to repositories of firm"),
        ("hf_write", "firm/it", "its account, me, can only read in firm"),
        ("hf_write", "other/it", "its account, me, is no member of other"),
        ("hf_gone", "me/it", "it is wrong or was revoked"),
    ],
)
def test_the_scope_of_a_token_is_asked_for_before_any_work(
    hub, tmp_path, token, place, reason, capsys
):
    address, state = hub
    code, said, complained = run(CHECK, place, token, address=address, home=tmp_path)
    if reason is None:
        assert (code, said) == (0, place), complained
    else:
        assert code == 3 and reason in complained and "nothing was done" in complained
    assert not state.created and state.count("POST", "/") == 0


def test_a_check_without_a_network_is_said_in_one_sentence(tmp_path):
    nowhere = "http://127.0.0.1:9"
    code, _, said = run(CHECK, "me/it", "hf_write", address=nowhere, home=tmp_path, offline=True)
    assert code == 3 and "switched off by HF_HUB_OFFLINE" in said and "nothing was done" in said
    code, _, said = run(CHECK, "me/it", "hf_write", address=nowhere, home=tmp_path)
    assert code == 3 and "the Hub cannot be reached" in said


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_the_real_client_creates_a_private_repository_and_sends_every_file(
    hub, folder, tmp_path, xet
):
    address, state = hub
    code, said, complained = run(PUSH, folder, "hf_write", address=address, home=tmp_path, xet=xet)
    assert code == 0, complained
    assert said == f"{address}/me/it"
    assert state.created[0]["name"] == "it"
    assert state.created[0].get("private") is True or state.created[0]["visibility"] == "private"
    files = state.files()
    assert set(files) == {"config.json", "export.json", "README.md", *WEIGHTS}
    assert b"base_model: openai/gpt-oss-20b" in files["README.md"]
    assert state.messages == ["Deliver"]
    if xet:  # Xet packs both files into one object of about their size
        assert state.shards and abs(sum(state.xorbs.values()) - 100_000) < 1000
    else:
        assert {name: files[name] for name in WEIGHTS} == WEIGHTS
        assert state.count("POST", "/verify") == 2


def test_a_large_file_goes_in_parts_and_arrives_whole(hub, folder, tmp_path):
    address, state = hub
    state.part_size = 20_000  # 50,000 bytes: parts of 20,000, 20,000 and 10,000
    code, _, complained = run(PUSH, folder, "hf_write", address=address, home=tmp_path)
    assert code == 0, complained
    assert {len(parts) for parts in state.parts.values()} == {3}
    assert {name: state.files()[name] for name in WEIGHTS} == WEIGHTS


def test_an_existing_repository_keeps_its_visibility_and_nothing_is_sent_twice(
    hub, folder, tmp_path
):
    address, state = hub
    state.repositories["me/it"] = {}
    for _ in range(2):
        code, _, complained = run(PUSH, folder, "hf_write", address=address, home=tmp_path)
        assert code == 0, complained
    assert not state.created and state.count("POST", "/settings") == 0
    assert state.received == 100_000 and state.messages == ["Deliver"]
    (folder / "config.json").write_text('{"changed": true}')
    assert run(PUSH, folder, "hf_write", address=address, home=tmp_path)[0] == 0
    assert state.received == 100_000 and len(state.messages) == 2


@pytest.mark.parametrize(("xet", "held"), [(False, "/store/"), (True, "/commit/")])
def test_a_killed_upload_goes_on_with_what_is_missing(hub, folder, tmp_path, xet, held):
    address, state = hub
    state.hold[held] = 0 if xet else 1  # with LFS one file arrives, with Xet all but the commit
    process = start(PUSH, folder, "hf_write", address=address, home=tmp_path, xet=xet)
    assert state.reached.wait(60)
    while state.received < 50_000:  # the request before the held one may still be on its way
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = state.received
    assert before == 50_000 if not xet else before > 100_000
    assert not state.messages and not state.files()
    state.hold.clear()
    if not xet:
        state.released.set()  # the held request ends unheard; its file may or may not count
    code, _, complained = run(PUSH, folder, "hf_write", address=address, home=tmp_path, xet=xet)
    state.released.set()
    assert code == 0, complained
    assert state.messages == ["Deliver"] and set(WEIGHTS) < set(state.files())
    assert state.received - before <= (0 if xet else 100_000)


@pytest.mark.parametrize(
    ("part", "status", "exit_code", "sentence"),
    [
        ("/api/repos/create", 401, 3, "does not know this token"),
        ("/preupload/", 403, 3, "does not let this token write to me/it"),
        ("/preupload/", 404, 3, "finds no repository me/it"),
        ("/api/repos/create", 500, 3, "busy or out of order (500)"),
        ("/commit/", 400, 1, "answered 400 for me/it"),
        ("/store/", 403, 3, "does not let this token write to me/it"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(
    hub, folder, tmp_path, part, status, exit_code, sentence
):
    address, state = hub
    state.refuse[part] = status
    code, said, complained = run(PUSH, folder, "hf_write", address=address, home=tmp_path)
    assert (code, said) == (exit_code, ""), complained
    assert sentence in complained and "Traceback" not in complained
    assert f"the export is complete in {folder}" in complained
    assert not state.messages


def test_xet_s_own_errors_are_said_too(hub, folder, tmp_path):
    address, state = hub
    state.refuse["/xet-write-token/"] = 403
    code, _, complained = run(PUSH, folder, "hf_write", address=address, home=tmp_path, xet=True)
    assert code == 3 and "does not let this token write to me/it (403)" in complained
    state.refuse = {"/v1/xorbs/": 400}
    code, _, complained = run(PUSH, folder, "hf_write", address=address, home=tmp_path, xet=True)
    assert code == 1 and "Traceback" not in complained and "400" in complained
    assert not state.messages


def test_an_unreachable_hub_is_said_in_one_sentence(folder, tmp_path):
    code, _, said = run(PUSH, folder, "hf_write", address="http://127.0.0.1:9", home=tmp_path)
    assert code == 3 and "cannot be reached" in said


def test_a_folder_without_a_model_is_not_uploaded(tmp_path):
    from gptoss_tools.errors import DataError

    with pytest.raises(DataError, match="no exported model"):
        push(tmp_path, "me/it", token="hf_write")
