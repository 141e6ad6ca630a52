"""What goes along to Modal: the command line there, the files, and what the settings become."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import remote_lab
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.remote.job import _toml, plan_job
from gptoss_tools.remote.volume import send
from gptoss_tools.settings import EvaluateSettings, GenerateSettings, ResumeSettings, TrainSettings


def settings_of(job) -> dict:
    return tomllib.loads(job.uploads[-1].source.decode())


def names(job) -> list[str]:
    """The files of a job, without the folder that bears their digest."""
    return [one.remote.split("/", 2)[2] for one in job.uploads]


def test_flags_stay_flags_and_the_rest_becomes_a_settings_file(tmp_path):
    settings = TrainSettings(
        model="tiny",
        max_steps=9,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        lora_target_modules=["q_proj", "v_proj"],
        output_dir="runs/first",
        trainer={"adam_beta2": 0.99, "generation_kwargs": {"a b": [1, True]}},
    )
    flags = ["model", "gradient_checkpointing", "lora_target_modules", "output_dir"]
    job = plan_job("train-grpo", settings, explicit=flags, modes=["--json"])
    assert job.argv[0] == "train-grpo" and set(job.argv[1:6]) == {
        *("--no-gradient-checkpointing", "--model=tiny", "--output-dir=runs/first"),
        *("--lora-target-modules=q_proj", "--lora-target-modules=v_proj"),
    }
    assert job.argv[6:] == [f"--config={job.uploads[-1].remote}", "--json"]
    assert settings_of(job) == {
        "train-grpo": {"max_steps": 9, "learning_rate": 1e-5},
        "trainer": {"adam_beta2": 0.99, "generation_kwargs": {"a b": [1, True]}},
    }
    assert job.output == "runs/first" and names(job) == ["gptoss.toml"]


def test_the_command_reads_there_what_it_would_read_here(tmp_path):
    from gptoss_tools.load import load

    settings = TrainSettings(data=["absent"], eval_steps=3, warmup_steps=2, action_pattern='"(.)\n')
    job = plan_job("train-grpo", settings, explicit=["warmup_steps"])
    send(remote_lab.FolderVolume(tmp_path), job.uploads)
    config = next(word for word in job.argv if word.startswith("--config="))[9:]
    words = [word for word in job.argv[1:] if not word.startswith("--config")]
    flags = {w[2:].split("=")[0].replace("-", "_"): w.split("=", 1)[1] for w in words}
    found = load(TrainSettings, "train-grpo", flags=flags, config=config, environ={})
    assert found.explicit == {"warmup_steps", "output_dir"}
    assert found.settings == settings.model_copy(update={"output_dir": job.output})


def test_files_folders_and_patterns_are_sent_and_named_by_their_content(tmp_path):
    for name in ("t/a.csv", "t/deep/b.csv", "t/.hidden.csv", "one.csv"):
        remote_lab.write_table(tmp_path / name)
    settings = TrainSettings(data=["t", "one.csv", "t/**/*.csv", "elsewhere"], model="tiny")
    job = plan_job("train-grpo", settings)
    whole, single, matched, elsewhere = settings_of(job)["train-grpo"]["data"]
    assert (Path(whole).name, Path(single).name, elsewhere) == ("t", "one.csv", "elsewhere")
    assert names(job) == [
        "t/a.csv",
        "t/deep/b.csv",
        "one.csv",
        "a.csv",
        "deep/b.csv",
        "gptoss.toml",
    ]
    send(remote_lab.FolderVolume(tmp_path / "volume"), job.uploads)
    there = tmp_path / "volume"
    assert job.size == sum(path.stat().st_size for path in there.rglob("*") if path.is_file())
    assert (there / single).read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert sorted(p.name for p in (there / matched).rglob("*.csv")) == ["a.csv", "b.csv"]
    assert (there / whole / "deep" / "b.csv").exists()
    again = plan_job("train-grpo", settings)
    assert settings_of(again)["train-grpo"]["data"][0] == whole
    (tmp_path / "t" / "a.csv").write_text("other")
    assert settings_of(plan_job("train-grpo", settings))["train-grpo"]["data"][0] != whole


def test_an_empty_folder_is_refused_and_the_default_table_is_sent_when_it_is_here(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no file"):
        plan_job("train-grpo", TrainSettings(data=["empty"]))
    assert names(plan_job("train-grpo", TrainSettings())) == ["gptoss.toml"]
    remote_lab.write_table(tmp_path / "data" / "train" / "x.csv")
    job = plan_job("train-grpo", TrainSettings())
    assert names(job)[0] == "train/x.csv"
    assert settings_of(job)["train-grpo"]["data"][0].endswith("/train")


def test_a_run_that_is_here_is_sent_without_its_checkpoints_and_its_evaluation_has_a_place(
    tmp_path,
):
    run = tmp_path / "runs" / "first"
    for name in ("config.json", "outcome.json", "adapter/weights", "checkpoints/step-1/weights"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    settings = EvaluateSettings(target="runs/first", data=["none"])
    job = plan_job("evaluate", settings, positional="target", explicit=["target"])
    assert names(job)[:3] == [
        *("first/adapter/weights", "first/config.json", "first/outcome.json"),
    ]
    assert job.argv[0] == "evaluate" and job.argv[1].endswith("/first")
    assert settings_of(job)["evaluate"]["out"] == job.output == "evaluations/first"
    (run / "outcome.json").unlink()  # of an unfinished run the newest checkpoint is the adapter
    assert "first/checkpoints/step-1/weights" in names(plan_job("evaluate", settings))


def test_a_run_that_is_not_here_is_looked_for_on_the_volume():
    job = plan_job("resume", ResumeSettings(run="runs/first"), positional="run")
    assert job.argv[:2] == ["resume", "runs/first"] and job.output == "runs/first"
    job = plan_job("generate", GenerateSettings(target="runs/first", prompt="a\nb = 'c'"))
    assert settings_of(job)["generate"] == {"target": "runs/first", "prompt": "a\nb = 'c'"}


@pytest.mark.parametrize("place", ["/tmp/x", "../x", "runs/../../x"])
def test_an_output_that_would_not_be_on_the_volume_is_refused(place):
    with pytest.raises(ConfigError, match="`output_dir`") as caught:
        plan_job("train-grpo", TrainSettings(output_dir=place))
    assert caught.value.hint == "--output-dir runs/x"


def test_a_training_gets_a_folder_of_its_own_and_a_reward_takes_its_module_along():
    job = plan_job("train-grpo", TrainSettings(reward="mine.rewards:score"))
    assert job.output.startswith("runs/train-grpo-2") and job.modules == ("mine",)
    assert f"--output-dir={job.output}" in job.argv
    assert plan_job("train-grpo", TrainSettings()).modules == ()
    resumed = plan_job("train-grpo", TrainSettings(resume="runs/first"))
    assert resumed.output == "runs/first"
    assert not any(word.startswith("--output-dir") for word in resumed.argv)


TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_every_value_reads_back_from_toml_as_it_was(value):
    assert tomllib.loads(f"value = {_toml(value)}")["value"] == value
