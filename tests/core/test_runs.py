import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptoss_tools.core.claims import check_unused, claim, mark_latest, next_free
from gptoss_tools.core.publish import is_complete, publish, remove, sweep, write_json
from gptoss_tools.core.runs import Run, open_run
from gptoss_tools.errors import RunFolderError


def checkpoint(run: Run, step: int) -> Path:
    staging = run.checkpoints_path / f".tmp-{step}"
    staging.mkdir(parents=True)
    (staging / "adapter_config.json").write_text("{}")
    (staging / "adapter_model.safetensors").write_bytes(b"weights")
    return publish(staging, run.checkpoint_path_for(step), step=step)


def final_adapter(run: Run, step: int) -> Path:
    staging = run.path / ".tmp-adapter"
    staging.mkdir()
    (staging / "adapter_config.json").write_text("{}")
    return publish(staging, run.adapter_path, step=step)


def test_the_next_free_name_follows_the_highest_taken_one(tmp_path):
    home = tmp_path / "runs"
    assert next_free(home) == home / "grpo-001"
    assert not home.exists()
    assert claim(None, {}, home).path == home / "grpo-001"
    (home / "grpo-007").mkdir()
    (home / "grpo-notes").mkdir()
    assert claim(None, {}, home).path == home / "grpo-008"


def test_a_claimed_folder_holds_its_config_and_is_refused_to_the_next(tmp_path):
    run = claim(tmp_path / "a", {"settings": {"seed": 1}})
    assert open_run(run.path).settings == {"seed": 1}
    with pytest.raises(RunFolderError, match=r"already holds a run \(interrupted"):
        claim(tmp_path / "a", {})
    with pytest.raises(RunFolderError) as caught:
        check_unused(tmp_path / "a")
    assert "gptoss resume" in caught.value.hint and "--output-dir" in caught.value.hint


def test_an_empty_folder_or_one_with_hidden_files_can_be_claimed_and_a_full_one_not(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".DS_Store").touch()
    claim(tmp_path / "a", {})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not empty"):
        claim(tmp_path / "b", {})
    with pytest.raises(RunFolderError, match="is a file"):
        claim(tmp_path / "b" / "thesis.tex", {})


def _claim_or_none(path: Path) -> bool:
    try:
        claim(path, {"settings": {}})
    except RunFolderError:
        return False
    return True


def _claim_next(home: Path) -> str:
    return claim(None, {}, home).path.name


def test_of_processes_that_claim_one_folder_at_once_exactly_one_gets_it(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for attempt in range(5):
            won = pool.map(_claim_or_none, [tmp_path / str(attempt)] * 4, chunksize=1)
            assert sum(won) == 1
        names = pool.map(_claim_next, [tmp_path / "runs"] * 12, chunksize=1)
    assert sorted(names) == [f"grpo-{n:03d}" for n in range(1, 13)]


def test_latest_is_a_relative_link_and_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = claim(None, {"settings": {"seed": 1}}), claim(None, {"settings": {"seed": 2}})
    mark_latest(one)
    mark_latest(two)
    assert os.readlink("runs/latest") == "grpo-002"
    assert open_run().settings == {"seed": 2}
    assert open_run().path == Path("runs/grpo-002")
    assert sorted(os.listdir("runs")) == ["grpo-001", "grpo-002", "latest"]


def test_latest_is_a_text_file_where_links_are_impossible(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = claim(None, {"settings": {"seed": 3}})

    def refuse(*args, **kwargs):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    mark_latest(run)
    assert Path("runs/latest").read_text() == "grpo-001\n"
    assert open_run("runs/latest").settings == {"seed": 3}


def test_a_folder_of_the_users_called_latest_is_left_alone(tmp_path):
    run = claim(None, {}, tmp_path)
    (tmp_path / "latest").mkdir()
    with pytest.raises(RunFolderError, match="latest"):
        mark_latest(run, tmp_path)
    assert not (tmp_path / "latest").is_symlink()


def test_without_a_run_the_error_names_the_command_that_makes_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError, match="no run yet") as caught:
        open_run()
    assert caught.value.hint == "gptoss train-grpo"
    (tmp_path / "junk").mkdir()
    with pytest.raises(RunFolderError, match="no run, checkpoint or adapter"):
        open_run(tmp_path / "junk")


def test_checkpoints_sort_by_number_and_junk_and_half_ones_are_not_among_them(tmp_path):
    run = claim(tmp_path / "r", {})
    for step in (20, 1_000_000, 999_999, 100):
        checkpoint(run, step)
    (run.checkpoints_path / "step-000300").mkdir()
    (run.checkpoints_path / "step-abc").mkdir()
    (run.checkpoints_path / "notes.txt").touch()
    damaged = checkpoint(run, 400)
    (damaged / "adapter_model.safetensors").write_bytes(b"half")
    assert [c.step for c in run.checkpoints()] == [20, 100, 999_999, 1_000_000]
    assert damaged in run.damaged() and run.checkpoint().path not in run.damaged()
    assert run.checkpoint().step == 1_000_000


def test_a_checkpoint_folder_opens_its_run_and_selects_itself(tmp_path):
    run = claim(tmp_path / "r", {"settings": {"seed": 9}})
    first, _ = checkpoint(run, 20), checkpoint(run, 40)
    opened = open_run(first)
    assert opened.path == run.path and opened.settings == {"seed": 9}
    assert opened.checkpoint().step == 20
    assert opened.adapter().path == first and opened.adapter().step == 20
    (run.checkpoints_path / "step-000060").mkdir()
    with pytest.raises(RunFolderError, match="not a complete checkpoint"):
        open_run(run.checkpoints_path / "step-000060")


def test_the_adapter_is_the_final_one_unless_a_checkpoint_is_newer(tmp_path):
    run = claim(tmp_path / "r", {})
    with pytest.raises(RunFolderError, match="no adapter") as caught:
        run.adapter()
    assert caught.value.hint == f"gptoss resume {run.path}"
    checkpoint(run, 20)
    assert run.adapter().step == 20 and not run.adapter().final
    assert "newest checkpoint" in run.adapter().label
    final_adapter(run, 20)
    assert run.adapter().final and run.adapter().path == run.adapter_path
    assert open_run(run.adapter_path).path == run.path
    checkpoint(run, 40)
    assert run.adapter().step == 40 and not run.adapter().final


def test_a_run_that_trained_a_whole_model_has_that_and_no_adapter(tmp_path):
    run = claim(None, {}, tmp_path, "pretrain")
    assert run.path == tmp_path / "pretrain-001" and run.model() is None
    for step, place in ((20, run.checkpoint_path_for(20)), (30, run.model_path)):
        staging = run.path / ".tmp-model"
        staging.mkdir()
        (staging / "config.json").write_text('{"model_type": "gpt2"}')
        publish(staging, place, step=step)
        assert run.model() == place
    with pytest.raises(RunFolderError, match="trained the whole model"):
        run.adapter()
    selected = open_run(run.checkpoint_path_for(20))
    assert selected.path == run.path and selected.selected == run.checkpoint_path_for(20)


def test_a_model_folder_means_the_run_it_is_in_and_is_none_itself(tmp_path):
    run = claim(tmp_path / "run", {"settings": {"model": "tiny"}})
    for folder in (run.model_path, tmp_path / "model"):
        folder.mkdir()
        write_json(folder / "config.json", {"model_type": "llama"})
    assert open_run(run.model_path) == Run(run.path)
    with pytest.raises(RunFolderError, match="is a model, not a run"):
        open_run(tmp_path / "model")


def test_an_adapter_folder_of_no_run_is_opened_too(tmp_path):
    (tmp_path / "lone").mkdir()
    (tmp_path / "lone" / "adapter_config.json").write_text("{}")
    run = open_run(tmp_path / "lone")
    assert run.config == {} and run.adapter().path == tmp_path / "lone"


HOLD = """
import sys, time
from pathlib import Path
from gptoss_tools.core.runs import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_running_while_a_process_holds_it_and_free_once_that_is_killed(tmp_path):
    run = claim(tmp_path / "r", {})
    assert run.state == "interrupted"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert run.state == "running"
        with (
            pytest.raises(RunFolderError, match=f"process {holder.pid}"),
            run.lock(patience=0.1),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with run.lock(patience=0.1):
        pass
    write_json(run.outcome_path, {"steps": 1})
    assert run.state == "finished"


def test_a_look_at_the_state_does_not_keep_a_trainer_out(tmp_path):
    run = claim(tmp_path / "r", {})
    started = time.monotonic()
    for _ in range(50):
        assert run.state == "interrupted"
        with run.lock(patience=0.5):
            pass
    assert time.monotonic() - started < 2


def test_publishing_replaces_a_folder_whole_and_tells_what_is_missing(tmp_path):
    for word in ("old", "new"):
        staging = tmp_path / ".tmp-x"
        (staging / "deep").mkdir(parents=True)
        (staging / "deep" / "file").write_text(word)
        publish(staging, tmp_path / "out", step=3)
    assert (tmp_path / "out" / "deep" / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]
    assert is_complete(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["step"] == 3
    (tmp_path / "out" / "deep" / "file").unlink()
    assert not is_complete(tmp_path / "out")


def test_sweeping_removes_leftovers_and_brings_back_a_folder_whose_replacement_never_came(
    tmp_path,
):
    staging = tmp_path / ".tmp-7-x"
    staging.mkdir()
    (staging / "f").touch()
    publish(staging, tmp_path / "adapter")
    os.replace(tmp_path / "adapter", tmp_path / ".tmp-7-adapter-old")  # killed at this point
    (tmp_path / ".tmp-7-half").mkdir()
    (tmp_path / ".tmp-7-text.json").touch()
    (tmp_path / "mine.txt").touch()
    assert len(sweep(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == ["adapter", "mine.txt"]
    remove(tmp_path / "adapter")
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_json_is_refused_rather_than_written_invalid(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []
