"""Folders that appear whole or not at all, with one writer at a time."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptoss_tools.core.publish import is_complete, read_manifest, temporary_name
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import GptossError, RunFolderError


def write(out: Path, text: str, **options) -> None:
    with whole_folder(out, **options) as folder:
        (folder / "x").write_text(text)


def test_a_folder_gets_its_name_and_a_manifest_when_the_block_ends(tmp_path):
    with whole_folder(tmp_path / "a" / "out", made_by="me") as folder:
        (folder / "x").write_text("12345")
        assert not (tmp_path / "a" / "out").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert read_manifest(tmp_path / "a" / "out") == {"made_by": "me", "files": {"x": 5}}
    assert is_complete(tmp_path / "a" / "out")
    (tmp_path / "a" / "out" / "x").write_text("1234")
    assert not is_complete(tmp_path / "a" / "out")


def test_an_error_leaves_what_was_there_before_and_nothing_else(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out", replace=True) as folder:
        (folder / "x").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write(tmp_path / "out", "new", replace=True)
    assert (tmp_path / "out" / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_taken_meanwhile_is_not_replaced_unasked(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunFolderError, match="appeared meanwhile"), whole_folder(out):
        write_elsewhere = out / "mine"
        out.mkdir()
        write_elsewhere.write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "mine").read_text() == "mine"


def test_a_second_writer_is_refused_and_comes_through_afterwards(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("first")
        with pytest.raises(RunFolderError, match="another process is writing"):
            write(tmp_path / "out", "second")
        write(tmp_path / "other", "beside")
    assert (tmp_path / "out" / "x").read_text() == "first"
    write(tmp_path / "out", "second", replace=True)


def test_many_writers_at_once_leave_one_whole_folder(tmp_path):
    out, refused, errors = tmp_path / "out", [], []

    def work(number: int) -> None:
        for turn in range(20):
            try:
                write(out, f"{number} {turn}", replace=True)
            except RunFolderError:
                refused.append(number)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(refused) < 80
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and is_complete(out)


KILLED = """
import os, signal, sys
from pathlib import Path
from gptoss_tools.core.whole_folder import whole_folder
out = Path(sys.argv[1])
step = sys.argv[2]
real = os.replace
def replace(source, target):
    if step == "aside" and Path(target) == out:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
with whole_folder(out, replace=True) as folder:
    (folder / "x").write_text("new")
    if step == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("step", ["writing", "aside"])
def test_what_a_killed_writer_left_is_cleared_and_the_old_folder_comes_back(step, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), step])
    assert done.returncode == -signal.SIGKILL
    # At no moment a half folder has the name: it is the old one, or nobody's for an instant.
    assert (step == "aside") is not out.exists()
    assert all(path.name.startswith(".") or path == out for path in tmp_path.iterdir())
    with pytest.raises(KeyError), whole_folder(out, replace=True):
        raise KeyError  # even a writer that fails brings the old one back
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "x").read_text() == "old"


def test_another_folder_s_leftovers_stay(tmp_path):
    other = temporary_name(tmp_path / "not-out-old")
    write(tmp_path / "aside", "kept")
    (tmp_path / "aside").rename(other)
    write(tmp_path / "out", "x")
    assert other.is_dir()


FULL = """
import sys
from pathlib import Path
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import GptossError
try:
    with whole_folder(Path(sys.argv[1])) as folder:
        (folder / "x").write_bytes(bytes(200_000))
except GptossError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def run(out: Path, **more) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", FULL, str(out)]
    return subprocess.run(line, capture_output=True, text=True, **more)


def test_a_file_larger_than_allowed_is_said_in_a_sentence_and_leaves_nothing(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run(tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 1
    assert done.stdout == f"{tmp_path} may not hold a file that large; nothing was kept\n"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(GptossError, match="is full; nothing was kept") as caught,
        whole_folder(out) as folder,
    ):
        (folder / "x").write_text("x")
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")  # the kernel's own ENOSPC
    assert caught.value.exit_code == 1 and not list(tmp_path.iterdir())


def test_a_place_that_can_hold_no_folder_is_refused_at_once():
    refused = pytest.raises(RunFolderError, match="/proc/new cannot be written")
    with refused, whole_folder(Path("/proc/new")):
        pass


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "out"):
        os.stat(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())
