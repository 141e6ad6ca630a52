"""One attempt in a container: what it starts, what it keeps, and how the next one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import remote_lab

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.publish import publish
from gptoss_tools.core.runs import Run
from gptoss_tools.remote import attempt, volume
from gptoss_tools.remote.attempt import Unfinished, carry_out
from gptoss_tools.remote.child import Node, program, run_child

BODY = "from gptoss_tools.remote.modal_app import train_remote; train_remote.local(*{!r})"


class Children:
    """Stands in for the child process: notes the lines, does `work`, returns `code`."""

    def __init__(self, code: int = 0, stdout: str = "", work=lambda: None) -> None:
        self.code, self.stdout, self.work, self.lines = code, stdout, work, []

    def __call__(self, line, folder, say, grace):
        self.lines.append(line[line.index("gptoss_tools") + 1 :])
        self.work()
        return self.code, self.stdout


@pytest.fixture
def child(monkeypatch):
    """Replace the child process."""

    def replace(**how) -> Children:
        children = Children(**how)
        monkeypatch.setattr(attempt, "run_child", children)
        return children

    return replace


def checkpoint(run, step: int) -> None:
    staging = run / "checkpoints" / f".tmp-{step}"
    staging.mkdir(parents=True)
    (staging / "weights").write_bytes(b"w")
    publish(staging, run / "checkpoints" / f"step-{step:06d}", step=step)


@pytest.mark.slow
def test_a_training_that_was_killed_and_preempted_ends_with_the_same_bits(
    launched, tmp_path, cache_dir
):
    assert launched.done.returncode == 0, launched.done.stderr
    run = tmp_path / "runs" / "broken"
    data = str(launched.here / "tables")
    argv = ("--data", data, *remote_lab.SHORT, "--learning-rate=1e-3", "--output-dir=runs/broken")
    kept = remote_lab.CountingVolume(run)

    def once(line=("train-grpo", *argv, "--json")):
        return carry_out(
            line, tmp_path, call="local", say=lambda text: None, volume=kept, every=0.05
        )

    def kill() -> None:
        remote_lab.wait_for_step(run, 2)
        for process in psutil.Process().children():
            if "gptoss_tools" in process.cmdline():  # and not a service of another test's
                process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(Unfinished, match="exit code -9"):
        once()
    killer.join()
    assert kept.reloads == 1 and kept.commits
    reached = Run(run).checkpoint().step

    # preempted: SIGINT reaches the function, which hands it on, lets the child save, and ends
    process = subprocess.Popen([sys.executable, "-c", BODY.format(argv)], stderr=subprocess.PIPE)
    remote_lab.wait_for_step(run, max(5, reached + 1))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode and b"KeyboardInterrupt" in errors
    assert b"SIGTERM: saving after this step" in errors
    assert Run(run).state == "interrupted"
    assert Run(run).checkpoint().step == read_metrics(run / "metrics.jsonl")[-1]["step"] >= 5

    answer = once()
    assert (answer["exit_code"], answer["run"]) == (0, "runs/broken")
    assert answer["result"]["steps"] == remote_lab.STEPS
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, remote_lab.STEPS + 1))
    assert {record["segment"] for record in records} == {1, 2, 3}
    name = "adapter/adapter_model.safetensors"
    straight = launched.volume / "runs" / "straight" / name
    assert (run / name).read_bytes() == straight.read_bytes()

    # called once more, as after a preemption between the end and the answer: nothing is trained
    began = time.monotonic()
    assert once()["result"]["steps"] == remote_lab.STEPS
    assert time.monotonic() - began < 1


def test_the_next_attempt_of_a_call_resumes_the_run_and_another_call_does_not(child, tmp_path):
    run = tmp_path / "runs" / "first"

    def begin() -> None:
        (run / "config.json").write_text("{}")
        checkpoint(run, 3)

    line = ("train-grpo", "--max-steps", "9", "--output-dir", "runs/first", "--json")
    killed = child(code=-9, work=begin)
    with pytest.raises(Unfinished, match="exit code -9 after step 3"):
        carry_out(line, tmp_path, call="fc-1", say=print)
    assert killed.lines == [list(line)]

    resumed = child(stdout='{"steps": 9}')
    answer = carry_out(line, tmp_path, call="fc-1", say=print)
    assert resumed.lines == [["resume", "runs/first", "--json"]]
    assert answer == {
        "exit_code": 0,
        "stdout": '{"steps": 9}',
        "result": {"steps": 9},
        "run": "runs/first",
    }

    other = child(code=2)
    assert carry_out(line, tmp_path, call="fc-2", say=print)["exit_code"] == 2
    assert other.lines == [list(line)]  # and gptoss refuses the folder, as it does anywhere


def test_a_run_without_a_folder_is_named_after_its_call_and_resume_creates_none(child, tmp_path):
    plain = child()
    answer = carry_out(("train-grpo", "--max-steps", "9"), tmp_path, call="fc-7", say=print)
    assert plain.lines == [["train-grpo", "--max-steps", "9", "--output-dir=runs/fc-7"]]
    assert answer["run"] == "runs/fc-7"
    goes_on = child(code=2)
    line = ("resume", "runs/absent/checkpoints/step-000003", "--json")
    assert carry_out(line, tmp_path, call="fc-8", say=print)["run"] == "runs/absent"
    assert goes_on.lines == [list(line)] and not (tmp_path / "runs" / "absent").exists()


def test_the_next_attempt_of_a_resume_does_not_ask_for_more_steps_again(child, tmp_path):
    run = tmp_path / "runs" / "first"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "starts.jsonl").write_text("{}\n")
    line = ("resume", "runs/first/checkpoints/step-000003", "--resume-steps=5", "--json")
    early = child(code=-9)  # killed before it began: asked again as it was
    for _ in range(2):
        with pytest.raises(Unfinished):
            carry_out(line, tmp_path, call="fc-1", say=print)
    assert early.lines == [list(line)] * 2
    late = child(code=-9, work=lambda: (run / "starts.jsonl").write_text("{}\n" * 2))
    for _ in range(2):
        with pytest.raises(Unfinished):
            carry_out(line, tmp_path, call="fc-1", say=print)
    assert late.lines == [list(line), ["resume", "runs/first", "--json"]]


def test_a_failure_is_tried_again_only_where_the_run_got_further(child, tmp_path):
    line = ("train-grpo", "--output-dir", "runs/first")
    child(code=1)
    assert carry_out(line, tmp_path, call="fc-1", say=print)["exit_code"] == 1
    child(code=1, work=lambda: checkpoint(tmp_path / "runs" / "first", 1))
    with pytest.raises(Unfinished, match="exit code 1 after step 1"):
        carry_out(line, tmp_path, call="fc-1", say=print)
    child(code=3)
    answer = carry_out(("evaluate", "runs/first"), tmp_path, call="fc-1", say=print)
    assert (answer["exit_code"], answer["result"], answer["run"]) == (3, None, None)
    child(code=137)
    with pytest.raises(Unfinished):
        carry_out(("evaluate", "runs/first"), tmp_path, call="fc-1", say=print)


def test_the_volume_is_committed_at_every_checkpoint_and_a_failed_commit_is_said(tmp_path):
    heard: list[str] = []
    kept = remote_lab.CountingVolume(tmp_path)
    broken = iter([True])

    def commit() -> None:
        if next(broken, False):
            raise RuntimeError("busy")
        remote_lab.CountingVolume.commit(kept)

    kept.commit = commit
    with volume.committing(kept, Run(tmp_path), 0.01, heard.append):
        (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)  # not complete
        time.sleep(0.1)
        assert not kept.commits and not heard
        checkpoint(tmp_path, 2)
        while not kept.commits:
            time.sleep(0.01)
    assert heard == ["the volume could not be committed: busy\n"]
    assert kept.commits == [[2], [2]]  # as it came, and at the end
    with volume.committing(None, Run(tmp_path), 0.01, heard.append):
        pass


def test_trainings_start_under_torchrun_where_several_processes_train():
    def words(*line, **how):
        return program(line, how.get("processes", 1), how.get("node", Node()))[1:]

    assert words("train-grpo") == ["-m", "gptoss_tools"]
    assert words("evaluate", processes=8) == ["-m", "gptoss_tools"]
    torchrun = ["-m", "torch.distributed.run"]
    assert words("resume", "runs/x", processes=8) == [
        *(*torchrun, "--standalone", "--nproc-per-node=8", "-m", "gptoss_tools"),
    ]
    assert words("train-grpo", processes=8, node=Node(1, 2, "fd00::1")) == [
        *(*torchrun, "--nnodes=2", "--node-rank=1", "--master-addr=fd00::1"),
        *("--master-port=29400", "--nproc-per-node=8", "-m", "gptoss_tools"),
    ]


def test_a_child_hears_of_an_interruption_once_and_is_killed_when_it_does_not_end(tmp_path):
    # it writes how often it was told, and does not end by itself
    stubborn = (
        "import signal, time\n"
        "def told(*_): print('told', flush=True)\n"
        "signal.signal(signal.SIGTERM, told); signal.signal(signal.SIGINT, told)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    heard: list[str] = []

    def say(piece: str) -> None:
        heard.append(piece)
        if piece == "ready\n":
            os.kill(os.getpid(), signal.SIGTERM)

    before, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="ended by SIGTERM"):
        run_child([sys.executable, "-c", stubborn], tmp_path, say, grace=0.5)
    assert heard == ["ready\n", "told\n"]
    assert 0.5 <= time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_real_command_runs_through_the_general_body(gptoss, tmp_path):
    from gptoss_tools.remote.modal_app import command_remote

    remote_lab.write_table(tmp_path / "table.csv")
    with pytest.warns(UserWarning, match="executing locally"):
        answer = command_remote.local("check-data", "table.csv", "--json")
    assert answer["exit_code"] == 0 and answer["run"] is None
    assert json.loads(gptoss("check-data", "table.csv", "--json")[1]) == answer["result"]
    with pytest.warns(UserWarning):
        assert command_remote.local("check-data", "absent.csv")["exit_code"] == 2
