"""Whole runs on a random two-layer model: interrupted, resumed, refused."""

import csv
import importlib.util
import json
import os
import shutil
import signal

import pytest
import run_lab
import torch

from gptoss_tools.core.claims import claim
from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.runs import open_run
from gptoss_tools.errors import ConfigError, DataError, MachineError, RunFolderError
from gptoss_tools.settings import ResumeSettings
from gptoss_tools.training.checkpoints import ROLLING
from gptoss_tools.training.train import Interrupted, plan, train


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with model, table and `straight`, a run of six steps without interruption."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = run_lab.furnish(tmp_path_factory.mktemp("lab"))
    before = os.getcwd()
    os.chdir(folder)
    run_lab.run(folder, "straight")
    yield folder
    os.chdir(before)
    torch.set_num_threads(threads)


def stop_at(step):
    """Send SIGINT to this process, as Ctrl-C does, when `step` is reported."""

    def on_step(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


def interrupt(lab, name, step, **changes):
    """Leave a run interrupted; the signal comes after the step's record, so one step follows."""
    with pytest.raises(Interrupted) as caught:
        train(run_lab.settings(lab, name, **changes), on_step=stop_at(step))
    return caught.value


def rows_of(run):
    with run.completions_path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_every_part_behind(lab):
    run = open_run(lab / "straight")
    assert run.state == "finished"
    assert run.settings["max_steps"] == 6 and run.settings["date"]
    assert run.config["data"]["rows"] == 5 and len(run.config["data"]["sha256"]) == 64
    assert run.versions["torch"] == torch.__version__
    assert [c.step for c in run.checkpoints()] == [3, 6]
    assert [r["step"] for r in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5, 6]
    # 6 steps of 2 micro-steps of 4 completions
    assert len(rows_of(run)) == 48
    assert open_run(lab / "runs/latest").path.resolve() == lab / "straight"
    leftovers = [p for p in run.path.rglob(".tmp-*")]
    assert leftovers == []


def test_the_adapter_loads_with_stock_peft_and_is_not_the_base_model(lab):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((lab / "straight/adapter/adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(lab / "straight/adapter")
    batch = tokenizer("<|start|>user<|message|>x<|end|>", return_tensors="pt")
    with torch.no_grad():
        plain = base(**batch).logits
        model = PeftModel.from_pretrained(base, str(lab / "straight/adapter"))
        assert not torch.equal(model(**batch).logits, plain)
        with model.disable_adapter():
            assert torch.equal(model(**batch).logits, plain)


def test_ctrl_c_ends_the_step_saves_and_says_how_to_go_on(lab):
    said = []
    with pytest.raises(KeyboardInterrupt) as caught:
        train(run_lab.settings(lab, "cut"), on_step=stop_at(1), on_notice=said.append)
    run = open_run(lab / "cut")
    assert run.state == "interrupted"
    assert run.checkpoint().step == 2
    assert "after step 2 of 6" in str(caught.value)
    assert caught.value.hint == f"gptoss resume {run.path}"
    assert any("SIGINT" in line for line in said)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    outcome = run_lab.go_on(lab, "cut")
    assert outcome.resumed_from == 2 and outcome.steps == 6
    assert run_lab.same_bits(lab / "cut/adapter", lab / "straight/adapter")


def test_a_run_interrupted_twice_ends_with_the_same_bits_and_one_history(lab):
    from gptoss_tools.settings import ResumeSettings
    from gptoss_tools.training.train import resume

    interrupt(lab, "twice", 1)
    with pytest.raises(Interrupted):
        resume(ResumeSettings(run=str(lab / "twice")), on_step=stop_at(4))
    run_lab.go_on(lab, "twice")
    run, straight = open_run(lab / "twice"), open_run(lab / "straight")
    assert run_lab.same_bits(run.adapter_path, straight.adapter_path)
    records = read_metrics(run.metrics_path)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["segment"] for r in records] == [1, 1, 2, 2, 2, 3]
    for one, other in zip(records, read_metrics(straight.metrics_path), strict=True):
        assert one["reward"] == other["reward"] and one["loss"] == other["loss"]
    ours, theirs = rows_of(run), rows_of(straight)
    assert [{**r, "segment": ""} for r in ours] == [{**r, "segment": ""} for r in theirs]


def test_in_the_middle_of_a_generation_buffer_it_goes_on_exactly_too(lab):
    deep = {"steps_per_generation": 8, "num_iterations": 2, "gradient_accumulation_steps": 2}
    run_lab.run(lab, "deep", max_steps=11, **deep)
    interrupt(lab, "deep-cut", 4, max_steps=11, **deep)
    assert open_run(lab / "deep-cut").checkpoint().step == 5
    run_lab.go_on(lab, "deep-cut")
    assert run_lab.same_bits(lab / "deep/adapter", lab / "deep-cut/adapter")


def test_a_run_killed_before_its_first_checkpoint_starts_over(lab):
    interrupt(lab, "early", 1)
    shutil.rmtree(lab / "early/checkpoints")
    run_lab.go_on(lab, "early")
    assert run_lab.same_bits(lab / "early/adapter", lab / "straight/adapter")
    assert {r["segment"] for r in read_metrics(lab / "early/metrics.jsonl")} == {2}


def test_from_a_named_checkpoint_it_goes_on_and_moves_the_later_ones_aside(lab):
    shutil.copytree(lab / "straight", lab / "back", symlinks=True)
    said = []
    settings = run_lab.settings(lab, resume=str(lab / "back/checkpoints/step-000003"))
    outcome = train(settings, on_notice=said.append)
    assert outcome.run == lab / "back" and outcome.resumed_from == 3
    assert run_lab.same_bits(lab / "back/adapter", lab / "straight/adapter")
    assert len(list((lab / "back/checkpoints").glob("superseded-*/step-000006"))) == 1
    assert any("superseded" in line for line in said)


def test_a_finished_run_says_that_more_steps_would_take_it_further(lab):
    with pytest.raises(RunFolderError, match="finished") as caught:
        run_lab.go_on(lab, "straight")
    assert "--max-steps" in caught.value.hint
    with pytest.raises(ConfigError, match="has reached step 6"):
        run_lab.go_on(lab, "straight", max_steps=5)
    with pytest.raises(RunFolderError, match=r"already holds a run \(finished\)"):
        run_lab.run(lab, "straight")


def test_more_steps_follow_the_learning_rate_of_a_run_that_long(lab):
    shutil.copytree(lab / "straight", lab / "longer", symlinks=True)
    said = []
    from gptoss_tools.settings import ResumeSettings
    from gptoss_tools.training.train import resume

    resume(ResumeSettings(run=str(lab / "longer"), max_steps=9), on_notice=said.append)
    run = open_run(lab / "longer")
    rates = {r["step"]: r["learning_rate"] for r in read_metrics(run.metrics_path)}
    # linear from 0.01: step 7 is the 7th of 9, so 6/9 of the way down; the run of 6 ended at 0.
    assert rates[7] == pytest.approx(0.01 * 3 / 9)
    assert rates[9] == pytest.approx(0.01 * 1 / 9)
    assert run.settings["max_steps"] == 9 and run.state == "finished"
    assert run.adapter().final and run.adapter().step == 9
    assert any("max_steps 6 -> 9" in line for line in said)


def test_changed_data_are_refused_by_name_and_taken_when_told_so(lab):
    run_lab.write_table(lab / "other.csv")
    interrupt(lab, "data", 1, data=[str(lab / "other.csv")])
    run_lab.write_table(lab / "other.csv", first_reward=0.3)
    with pytest.raises(DataError, match=r"other\.csv are not those") as caught:
        run_lab.go_on(lab, "data")
    assert "--allow-changes" in caught.value.hint
    assert run_lab.go_on(lab, "data", allow_changes=True).steps == 6


def test_a_setting_that_breaks_exactness_is_refused_with_both_values(lab):
    interrupt(lab, "lr", 1)
    changed = run_lab.settings(lab, resume=str(lab / "lr"), learning_rate=0.02, save_steps=2)
    assert train_error(changed, {"save_steps", "learning_rate"}) == (
        f"{lab}/lr cannot go on exactly: learning_rate was 0.01 and is 0.02 now"
    )
    shape = changed.model_copy(update={"lora_r": 8, "allow_changes": True})
    assert "lora_r was 2" in train_error(shape, {"lora_r"})
    elsewhere = changed.model_copy(update={"output_dir": str(lab / "elsewhere")})
    assert "stays in its own folder" in train_error(elsewhere, {"output_dir"})
    told = changed.model_copy(update={"allow_changes": True})
    train(told, explicit={"learning_rate", "save_steps"})
    rates = {r["step"]: r["learning_rate"] for r in read_metrics(lab / "lr/metrics.jsonl")}
    # linear over 6 steps: step 3 is the third, so 2/6 of the way down from 0.02
    assert rates[3] == pytest.approx(0.02 * 4 / 6)
    assert [c.step for c in open_run(lab / "lr").checkpoints()] == [4, 6]


def train_error(settings, explicit):
    with pytest.raises(ConfigError) as caught:
        train(settings, explicit=explicit)
    return str(caught.value)


def test_settings_that_were_not_given_again_are_the_runs_own(lab):
    interrupt(lab, "own", 1)
    settings = run_lab.settings(lab, resume=str(lab / "own"), seed=7, max_steps=99)
    assert train(settings).steps == 6
    assert run_lab.same_bits(lab / "own/adapter", lab / "straight/adapter")


def test_what_is_refused_leaves_no_folder(lab):
    with pytest.raises(DataError, match="max_prompt_length"):
        run_lab.run(lab, "never", max_prompt_length=3)
    with pytest.raises(ConfigError, match="unknown reward"):
        run_lab.run(lab, "never", reward="decission")
    with pytest.raises(ConfigError, match="neither a folder nor a Hub id"):
        run_lab.run(lab, "never", model="./nowhere")
    (lab / "mine.csv").write_text("date,price\n")
    with pytest.raises(RunFolderError, match="other columns"):
        run_lab.run(lab, "never", completion_log_path=str(lab / "mine.csv"))
    if importlib.util.find_spec("trackio") is None:
        with pytest.raises(MachineError, match="trackio"):
            run_lab.run(lab, "never", report_to="trackio")
    assert not (lab / "never").exists()


def test_a_plan_loads_and_writes_nothing(lab):
    before = sorted(lab.rglob("*"))
    facts = plan(run_lab.settings(lab, "planned", max_steps=10))
    # 10 steps of 2 micro-steps of 1 prompt of 4 completions of at most 6 tokens
    assert facts["rows"] == 5 and facts["completions"] == 80 and facts["max_new_tokens"] == 480
    assert facts["checkpoints"] == 3 and facts["run"] == str(lab / "planned")
    assert sorted(lab.rglob("*")) == before


def test_a_plan_of_a_resume_counts_with_what_is_changed(lab):
    begun = run_lab.settings(lab, "begun", max_steps=10, save_steps=2)
    run = claim(lab / "begun", {"command": "train-grpo", "settings": begun.model_dump(mode="json")})
    facts = plan(ResumeSettings(run=str(run.path), max_steps=20, save_steps=5))
    assert facts["steps"] == 20 and facts["checkpoints"] == 4
    again = run_lab.settings(lab, "begun", max_steps=12, save_steps=7, resume=str(run.path))
    # only what the user gave counts: the rest of a resumed run is as it was
    facts = plan(again, {"max_steps"})
    assert facts["steps"] == 12 and facts["checkpoints"] == 6


def test_two_trainers_never_write_one_run(lab):
    interrupt(lab, "held", 1)
    run = open_run(lab / "held")
    with run.lock(), pytest.raises(RunFolderError, match="is in use by process"):
        run_lab.go_on(lab, "held")


def test_rolling_checkpoints_give_way_and_lasting_ones_stay(lab):
    interrupt(lab, "roll", 3)
    run = open_run(lab / "roll")
    assert [c.step for c in run.checkpoints()] == [3, 4]
    assert (run.checkpoints()[1].path / ROLLING).exists()
    run_lab.go_on(lab, "roll")
    assert [c.step for c in run.checkpoints()] == [3, 6]


def test_only_as_many_checkpoints_stay_as_the_limit_says(lab):
    run_lab.run(lab, "few", save_steps=1, save_total_limit=2)
    assert [c.step for c in open_run(lab / "few").checkpoints()] == [5, 6]


def test_a_run_goes_on_from_another_folder_than_it_began_in(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(lab)
    interrupt(lab, "moved", 1, data=["table.csv"], model="model")
    monkeypatch.chdir(tmp_path)
    run_lab.go_on(lab, "moved")
    assert run_lab.same_bits(lab / "moved/adapter", lab / "straight/adapter")
    assert open_run(tmp_path / "runs/latest").path.resolve() == lab / "moved"
