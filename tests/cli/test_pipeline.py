"""gptoss pipeline: what it runs, what it skips, and how it goes on."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest

from gptoss_tools.cli.stages import Stages
from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.publish import publish
from gptoss_tools.errors import GptossError

LEGACY = "user: Choose [0] or [1], case {}."
HARMONY = "<|start|>user<|message|>Choose [0] or [1], case {}.<|end|><|start|>assistant"
NAMES = ["prepare", "train", "evaluate", "log", "export"]


def write_table(path: Path, prompt: str = HARMONY, rewards: bool = True, rows: int = 6) -> None:
    lines = ["episode,prompt,q_action_0,q_action_1" + ",reward_action_0,reward_action_1" * rewards]
    for row in range(rows):
        scored = f",{int(row > 1)},{int(row < 2)}" if rewards else ""
        lines.append(f'{row // 2},"{prompt.format(row)}",{row},1.5{scored}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def tables(tmp_path):
    """Held-out tables where the pipeline looks for them, and tables to train on."""
    write_table(tmp_path / "data" / "train" / "x.csv")
    write_table(tmp_path / "data" / "heldout" / "y.csv")


@pytest.fixture
def lines(monkeypatch):
    """Command lines instead of processes; what they would write is written, as little as counts."""
    seen: list[list[str]] = []
    real = Stages.run

    def run(self, stage: str, *words: str) -> dict:
        seen.append(list(words))
        if words[0] in run.real:
            return real(self, stage, *words)
        for broken in run.broken:
            if broken == words[0]:
                raise GptossError(f"{broken} failed")
        place = {w.split("=")[0]: Path(w.split("=")[1]) for w in words if "=" in w}
        if words[0] in ("train-grpo", "resume"):
            folder = place.get("--output-dir") or Path(words[1])
            finished(folder, run.trained, **run.settings)
            return {"run": str(folder), "steps": 3, "reward_last": 0.5, "best": None}
        if words[0] == "evaluate":
            place["--out"].mkdir(parents=True, exist_ok=True)
            (place["--out"] / "evaluation.json").write_text("{}")
            figures = {"regret": {"mean": 0.25, "base": 1.0}, "reward": {"mean": 0.5}}
            return {"n_rows": 6, "invalid": {"total": 0.0}, **figures}
        if words[0] == "export":
            whole(place["--out"])
            return {"bytes_total": 7}
        return {}

    run.broken, run.settings, run.real, run.trained = [], {}, [], "adapter"
    monkeypatch.setattr(Stages, "run", run)
    return Seen(seen, run)


class Seen:
    def __init__(self, lines, run) -> None:
        self.all, self.run = lines, run

    def commands(self) -> list[str]:
        """The commands since the last question."""
        names = [line[0] for line in self.all]
        self.all.clear()
        return names


def whole(folder: Path) -> None:
    """A published folder."""
    shutil.rmtree(folder, ignore_errors=True)
    staging = folder.with_name(folder.name + "-staging")
    staging.mkdir(parents=True)
    (staging / "file").write_text("x")
    publish(staging, folder)


def finished(run: Path, trained: str = "adapter", **settings) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"settings": settings}))
    (run / "outcome.json").write_text('{"steps": 3}')
    whole(run / trained)


@pytest.mark.slow
def test_the_whole_way_with_a_kill_a_second_call_and_a_changed_setting(gptoss, tmp_path, tiny):
    write_table(tmp_path / "tables" / "train" / "x.csv", LEGACY, rewards=False)
    write_table(tmp_path / "tables" / "heldout" / "y.csv", rewards=False)
    (tmp_path / "gptoss.toml").write_text(
        'model = "tiny"\n[train-grpo]\nnum_generations = 4\nmax_completion_length = 8\n'
        "max_steps = 8\n[evaluate]\nmax_new_tokens = 8\n"
    )
    line = ("pipeline", "--data", "tables/train", "--eval-data", "tables/heldout", "--json")
    run = tmp_path / "runs" / "pipeline" / "run-001"

    def kill() -> None:
        ends = time.monotonic() + 90
        while time.monotonic() < ends and not read_metrics(run / "metrics.jsonl"):
            time.sleep(0.02)
        for process in psutil.Process().children():
            if "gptoss_tools" in process.cmdline():  # and not a service of another test's
                process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    code, out, stderr = gptoss(*line)
    killer.join()
    assert (code, out) == (137, "") and "ended with exit code 137" in stderr
    assert not run.joinpath("outcome.json").exists()

    plan = json.loads(gptoss(*line, "--dry-run")[1])["stages"]
    assert [row["state"] for row in plan] == ["done", *["would run"] * 4]
    assert plan[1]["why"] == "interrupted"
    code, out, stderr = gptoss(*line)
    assert code == 0, stderr
    first = json.loads(out)
    assert first["run"] == "runs/pipeline/run-001"
    assert [first["stages"][name]["ran"] for name in NAMES] == [False, *[True] * 4]
    assert first["stages"]["prepare"]["rows"] == 12
    assert (first["stages"]["prepare"]["converted"], first["stages"]["prepare"]["scored"]) == (1, 2)
    assert first["stages"]["train"]["steps"] == 8 and first["stages"]["evaluate"]["rows"] == 6
    assert (run / "starts.jsonl").read_text().count("\n") == 2  # killed once, resumed once
    assert (tmp_path / "runs/pipeline/export/export.json").is_file()
    assert list((tmp_path / "tables" / "train").iterdir()) == [tmp_path / "tables/train/x.csv"]

    began = time.monotonic()
    again = json.loads(gptoss(*line)[1])
    assert time.monotonic() - began < 3
    assert not any(stage["ran"] for stage in again["stages"].values())
    assert again["stages"]["evaluate"]["regret"] == first["stages"]["evaluate"]["regret"]

    write_table(tmp_path / "tables" / "heldout" / "y.csv", rewards=False, rows=4)
    plan = json.loads(gptoss(*line, "--dry-run")[1])["stages"]
    assert [(row["state"], row["why"]) for row in plan] == [("would run", "changed")] * 5


def test_tables_that_are_ready_are_used_where_they_are(gptoss, tables, lines):
    code, out, stderr = gptoss("pipeline", "--model", "tiny", "--max-steps", "3", "--json")
    assert code == 0, stderr
    assert lines.all == [
        ["check-data", "data/train"],
        ["check-data", "data/heldout"],
        [
            *("train-grpo", "--data=data/train", "--eval-data=data/heldout", "--model=tiny"),
            *("--max-steps=3", "--output-dir=runs/pipeline/run-001"),
        ],
        [
            *("evaluate", "runs/pipeline/run-001", "--data=data/heldout"),
            "--out=runs/pipeline/run-001/evaluation",
        ],
        ["export", "runs/pipeline/run-001", "--out=runs/pipeline/export"],
    ]
    stages = json.loads(out)["stages"]
    assert list(stages) == NAMES
    assert (stages["evaluate"]["regret"], stages["evaluate"]["regret_base"]) == (0.25, 1.0)
    [logged] = Path("runs/pipeline/log.jsonl").read_text().splitlines()
    assert json.loads(logged)["train"]["steps"] == 3


def test_a_changed_setting_runs_its_stage_and_those_after_it(gptoss, tables, lines, monkeypatch):
    gptoss("pipeline")
    lines.commands()
    assert gptoss("pipeline")[0] == 0 and lines.commands() == []
    monkeypatch.setenv("GPTOSS_MAX_NEW_TOKENS", "9")
    gptoss("pipeline")
    assert "--overwrite" in lines.all[0]  # of the same run and other settings
    assert lines.commands() == ["evaluate", "export"]
    gptoss("pipeline", "--max-steps", "5")
    assert "--output-dir=runs/pipeline/run-002" in lines.all[0]
    assert "--overwrite" not in lines.all[1] and "--overwrite" in lines.all[2]
    assert lines.commands() == ["train-grpo", "evaluate", "export"]
    assert Path("runs/pipeline/run-001/outcome.json").exists()  # the older run stays
    monkeypatch.setenv("GPTOSS_GPU", "H200")  # where something runs changes nothing
    assert gptoss("pipeline", "--max-steps", "5")[0] == 0 and lines.commands() == []


def test_changed_tables_run_everything_and_lost_outputs_their_stage(gptoss, tables, lines):
    gptoss("pipeline")
    lines.commands()
    write_table(Path("data/train/x.csv"), rows=8)
    gptoss("pipeline")
    assert lines.commands() == ["check-data", "check-data", "train-grpo", "evaluate", "export"]
    shutil.rmtree("runs/pipeline/export")
    plan = json.loads(gptoss("pipeline", "--dry-run", "--json")[1])["stages"]
    assert [row["state"] for row in plan] == ["done"] * 4 + ["would run"]
    assert plan[4]["why"] == "its output is gone"
    gptoss("pipeline")
    assert lines.commands() == ["export"]


def test_a_failed_stage_is_where_the_next_call_begins(gptoss, tables, lines):
    lines.run.broken.append("evaluate")
    assert gptoss("pipeline")[0] == 1
    assert lines.commands()[-1] == "evaluate"
    lines.run.broken.clear()
    assert gptoss("pipeline")[0] == 0
    assert lines.commands() == ["evaluate", "export"]


def test_a_training_that_ended_unnoticed_is_not_done_again(gptoss, tables, lines):
    lines.run.broken.append("train-grpo")
    gptoss("pipeline")
    lines.commands()
    finished(Path("runs/pipeline/run-001"))
    assert gptoss("pipeline")[0] == 0
    assert lines.commands() == ["evaluate", "export"]


def test_tables_are_prepared_in_copies_each_by_what_it_lacks(gptoss, tmp_path, lines):
    write_table(tmp_path / "a" / "x.csv", LEGACY, rewards=False)
    write_table(tmp_path / "b" / "x.csv", HARMONY.replace("case", "item"))
    write_table(tmp_path / "b" / "z.csv", HARMONY.replace("case", "day"), rewards=False)
    lines.run.real = ["convert-harmony", "calc-reward", "check-data"]
    code, _, stderr = gptoss("pipeline", "--data", "a", "--data", "b", "--eval-data", "")
    assert code == 0, stderr
    assert lines.commands() == [*lines.run.real, "train-grpo", "export"]
    book = json.loads(Path("runs/pipeline/pipeline.json").read_text())["stages"]
    assert list(book) == ["prepare", "train", "log", "export"]
    figures = book["prepare"]["figures"]
    assert [Path(path).name for path in figures["data"]] == [
        *("x_harmony_with_reward.csv", "1-x.csv", "z_with_reward.csv"),
    ]
    assert (figures["rows"], figures["converted"], figures["scored"]) == (18, 1, 2)
    assert figures["eval_data"] == []
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_problems_of_the_tables_are_named_and_stop_the_pipeline(gptoss, tmp_path):
    write_table(tmp_path / "data" / "train" / "x.csv")
    text = (tmp_path / "data/train/x.csv").read_text().replace(",0,1.5,0,1", ",0,1.5,1,0")
    (tmp_path / "data/train/x.csv").write_text(text)
    code, _, stderr = gptoss("pipeline", "--eval-data", "")
    assert code == 2
    assert "warning: file data/train/x.csv row 1 message the rewards do not fit" in stderr


def test_with_modal_the_stages_after_the_preparation_run_there(gptoss, tables, lines):
    place = ("--modal", "--gpu", "H100:8", "--nodes", "2", "--modal-secrets", "mine")
    assert gptoss("pipeline", *place)[0] == 0
    there = ["--modal", "--gpu=H100:8", "--nodes=2", "--modal-secrets=mine"]
    alone = ["--modal", "--gpu=H100", "--nodes=1", "--modal-secrets=mine"]
    assert [line[-4:] for line in lines.all[2:]] == [there, alone, alone]
    assert not any("--modal" in line for line in lines.all[:2])
    lines.commands()
    shutil.rmtree("runs/pipeline/run-001")  # it was never here: it is on the volume
    assert gptoss("pipeline", *place)[0] == 0 and lines.commands() == []
    shutil.rmtree("runs/pipeline/export")
    Path("runs/pipeline/pipeline.json").write_text(
        Path("runs/pipeline/pipeline.json").read_text().replace('"finished"', '"begun"')
    )
    code, _, stderr = gptoss("pipeline", *place)
    assert (code, lines.commands()[2]) == (0, "resume"), stderr


def test_a_run_at_modal_is_not_looked_for_here(gptoss, tables, lines, monkeypatch):
    gptoss("pipeline", "--modal")
    shutil.rmtree("runs/pipeline/run-001")
    monkeypatch.setenv("GPTOSS_MAX_NEW_TOKENS", "9")
    code, _, stderr = gptoss("pipeline")
    assert code == 2 and "was trained at Modal and is not here" in stderr
    assert "modal volume get gptoss-work runs/pipeline/run-001 runs/pipeline" in stderr


def test_an_interruption_says_how_to_go_on(gptoss, tables, monkeypatch):
    def stop(self, *words):
        raise KeyboardInterrupt("ended by SIGTERM")

    monkeypatch.setattr(Stages, "run", stop)
    code, _, stderr = gptoss("pipeline")
    assert code == 130
    assert "error: interrupted in the stage prepare" in stderr
    assert "hint: the same command goes on from here" in stderr


def test_a_whole_model_is_not_merged(gptoss, tables, lines):
    lines.run.trained = "model"
    code, out, _ = gptoss("pipeline", "--json")
    export = json.loads(out)["stages"]["export"]
    assert code == 0 and export["left_out"].startswith("the whole model was trained: runs/")
    assert lines.commands()[-1] == "evaluate"
    assert gptoss("pipeline")[0] == 0 and lines.commands() == []


@pytest.mark.slow
def test_the_tracker_of_the_run_gets_the_figures_of_the_evaluation(gptoss, tables, lines):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines.run.settings = {"report_to": "tensorboard"}
    code, out, _ = gptoss("pipeline", "--json")
    assert code == 0 and json.loads(out)["stages"]["log"]["tracker"] == "tensorboard"
    events = reader.EventAccumulator("runs/pipeline/run-001/tensorboard").Reload()
    [event] = events.Scalars("evaluate/regret")
    assert (event.step, event.value) == (3, 0.25)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--detach",), "a pipeline waits for its stages"),
        (("--out", "data"), "data holds no pipeline"),
        (("--push", "--repo-id", "me/x"), "an upload needs a Hugging Face token"),
        (("--training", "magic"), "`training` = 'magic'"),
        (("--data", "absent"), "absent does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(gptoss, tables, flags, message):
    code, _, stderr = gptoss("pipeline", *flags)
    assert code in (2, 3) and message in stderr
    assert "$ gptoss" not in stderr
