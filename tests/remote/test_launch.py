"""--modal from end to end: the real client against a stand-in of Modal's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import remote_lab
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as api
from modal_stand_in import Server, StandIn

from gptoss_tools.remote import modal_app
from gptoss_tools.remote.bodies import count_gpus

FLAGS = ("train-grpo", "--modal", "--model", "tiny", "--data", "tables", "--max-steps", "3")


@pytest.fixture
def table(tmp_path) -> Path:
    return remote_lab.write_table(tmp_path / "tables" / "train.csv")


@pytest.mark.slow
def test_a_training_runs_there_and_its_result_is_the_result_here(launched):
    done = launched.done
    assert done.returncode == 0, done.stderr
    assert {"run: runs/straight", f"steps: {remote_lab.STEPS}"} <= set(done.stdout.splitlines())
    assert "hint: modal volume get gptoss-work runs/straight ." in launched.done.stderr
    assert [path.name for path in launched.here.iterdir()] == ["tables"]  # nothing is written here
    [line] = launched.stand_in.lines
    assert line[0] == "train-grpo" and f"--max-steps={remote_lab.STEPS}" in line
    assert not any(word.startswith(("--modal", "--gpu", "--detach")) for word in line)
    config = json.loads((launched.volume / "runs/straight/config.json").read_text())
    assert config["settings"]["learning_rate"] == 1e-3
    assert config["origins"]["learning_rate"] == "--learning-rate"
    [data] = config["settings"]["data"]
    assert data.startswith("inputs/") and (launched.volume / data / "train.csv").is_file()


@pytest.mark.slow
def test_the_function_asks_for_what_the_settings_say(launched):
    stand_in = launched.stand_in
    [function] = stand_in.functions
    resources = function.resources.gpu_config
    assert (resources.gpu_type, resources.count) == ("H200", 1)
    assert function.timeout_secs == 86400 and function.retry_policy.retries == 10
    assert list(function.secret_ids) == ["st-wandb-secret"]  # the other one does not exist
    mounts = {mount.mount_path: mount.volume_id for mount in function.volume_mounts}
    assert mounts == {"/vol/gptoss": "vo-gptoss-work", "/vol/hub": "vo-gptoss-hub"}
    assert function.module_name == "gptoss_tools.remote.bodies"
    assert function.implementation_name == function.function_name == "command_remote"
    assert stand_in.states == [api.APP_STATE_EPHEMERAL]
    assert stand_in.disconnects == [api.APP_DISCONNECT_REASON_ENTRYPOINT_COMPLETED]
    # the files of the package that are no Python come along
    for name in ("report/page.css", "models/tiny_prompts.json", "remote/bodies.py"):
        assert any(file.endswith(f"gptoss_tools/{name}") for file in stand_in.mounted)
    assert not any("__pycache__" in file for file in stand_in.mounted)


def test_detached_it_only_starts_and_says_how_to_follow(modal_server, table, tmp_path):
    done = remote_lab.gptoss(
        *(*FLAGS, "--detach", "--nodes", "2", "--gpu", "h100:8", "--json"),
        cwd=tmp_path,
        **modal_server.environment,
    )
    found = remote_lab.document(done)
    assert (found["app"], found["call"]) == ("ap-1", "fc-1")
    assert found["output"].startswith("runs/train-grpo-")
    stand_in = modal_server.stand_in
    [function] = stand_in.functions
    assert function._experimental_group_size == 2 and function.i6pn_enabled
    assert function.resources.gpu_config.count == 8
    assert stand_in.states == [api.APP_STATE_DETACHED]
    assert "FunctionGetOutputs" not in stand_in.seen


def test_the_exit_code_there_is_the_exit_code_here(modal_server, table, tmp_path):
    line = ("evaluate", "runs/absent", "--data", "tables", "--modal", "--quiet")
    done = remote_lab.gptoss(*line, cwd=tmp_path, **modal_server.environment)
    assert done.returncode == 2 and done.stdout == ""
    assert "error: `gptoss evaluate` ended with exit code 2 at Modal" in done.stderr


def test_a_json_result_is_the_only_thing_on_standard_output(modal_server, table, tmp_path):
    answer = {"exit_code": 0, "stdout": "as it came", "result": {"steps": 3}, "run": "runs/x"}
    modal_server.stand_in.answers.append(answer)
    done = remote_lab.gptoss(*FLAGS, "--json", cwd=tmp_path, **modal_server.environment)
    assert remote_lab.document(done) == {"steps": 3}
    assert "App completed" in done.stderr


def test_without_credentials_it_ends_with_exit_code_3_and_nothing_is_written(table, tmp_path):
    empty = tmp_path / "empty.toml"
    empty.touch()
    before = sorted(tmp_path.rglob("*"))
    done = remote_lab.gptoss(*FLAGS, cwd=tmp_path, MODAL_CONFIG_PATH=str(empty))
    assert (done.returncode, done.stdout) == (3, "")
    error, hint = done.stderr.splitlines()
    assert error == "error: Modal does not know this machine: Token missing"
    assert hint == "hint: modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wrong_token_and_a_missing_secret_are_said_before_anything_is_sent(
    modal_server, table, tmp_path
):
    wrong = {**modal_server.environment, "MODAL_TOKEN_SECRET": "as-wrong"}
    done = remote_lab.gptoss(*FLAGS, cwd=tmp_path, **wrong)
    assert done.returncode == 3 and "does not know this machine" in done.stderr
    asked = ("--modal-secrets", "mine")
    done = remote_lab.gptoss(*FLAGS, *asked, cwd=tmp_path, **modal_server.environment)
    assert done.returncode == 3 and "error: Modal has no secret `mine`" in done.stderr
    assert not modal_server.stand_in.volume.exists()
    assert "AppCreate" not in modal_server.stand_in.seen


def test_a_dry_run_needs_no_account_and_names_what_would_be_sent(gptoss, table, monkeypatch):
    monkeypatch.setenv("GPTOSS_LORA_R", "8")
    line = (*FLAGS, "--dry-run", "--output-dir", "runs/x", "--json")
    code, out, _ = gptoss(*line)
    plan = json.loads(out)
    assert code == 0 and plan["gpu"] == "H100" and plan["output"] == "runs/x"
    assert "--lora-r=8" in plan["command"] and "--dry-run" not in plan["command"]
    assert [Path(name).name for name in plan["files"]] == ["train.csv", "gptoss.toml"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpu", "fast one"), "not a GPU of the form"),
        (("--nodes", "2"), "hint: --gpu H100:8"),
        (("--output-dir", "/tmp/x"), "where only a relative path"),
    ],
)
def test_wrong_wishes_are_refused_here(gptoss, table, flags, message):
    code, _, stderr = gptoss(*FLAGS, *flags)
    assert code == 2 and message in stderr


def test_modal_run_finds_the_functions_and_takes_their_flags(modal_server, tmp_path):
    line = [sys.executable, "-m", "modal", "run", "-m", "gptoss_tools.remote.modal_app::"]
    variables = {**os.environ, **modal_server.environment}
    line[-1] += "command_remote"
    done = subprocess.run(
        [*line, "check-data", "absent.csv"],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert modal_server.stand_in.lines == [("check-data", "absent.csv")]
    functions = {function.function_name for function in modal_server.stand_in.functions}
    assert functions == {"train_remote", "evaluate_remote", "infer_remote", "command_remote"}
    for function in modal_server.stand_in.functions:
        assert function.resources.gpu_config.gpu_type == "H100" and not function.secret_ids


def test_the_gpus_of_a_machine_are_counted_and_none_is_one_process(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus() == 1
    tool = tmp_path / "nvidia-smi"
    lines = "GPU 0: NVIDIA H200 (UUID: GPU-1)\\nGPU 1: NVIDIA H200 (UUID: GPU-2)\\n"
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    tool.chmod(0o755)
    assert count_gpus() == 2


def test_an_installed_package_names_what_it_needs_without_its_extras():
    needs = modal_app.requirements()
    assert any(need.startswith("torch") for need in needs)
    assert not any("pytest" in need or "vllm" in need for need in needs)


def test_what_modal_refuses_is_one_sentence(table, tmp_path):
    def refuse(request):
        raise GRPCError(Status.PERMISSION_DENIED, "the workspace is over its budget.")

    with Server(StandIn(tmp_path / "volume")) as server:
        server.stand_in.on_AppCreate = refuse
        done = remote_lab.gptoss(*FLAGS, "--quiet", cwd=tmp_path, **server.environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the job on Modal failed: the workspace is over its budget\n"
