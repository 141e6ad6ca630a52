"""Sessions on a random two-layer model: the same bits as the command line, and no traces."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
import run_lab
import torch

from gptoss_tools.core.runs import Run, open_run
from gptoss_tools.errors import ConfigError, RunFolderError
from gptoss_tools.notebook import (
    SessionSettings,
    prepare_session,
    quick_test,
    run_full_pipeline,
    train_grpo,
)
from gptoss_tools.notebook.verbs import GOES_ON
from gptoss_tools.settings import ResumeSettings, TrainSettings
from gptoss_tools.training.checkpoints import FREE
from gptoss_tools.training.train import Interrupted, resume


def stopping_at(step, how):
    """A listener that stops the training at `step`."""

    def on_step(progress):
        if progress.step == step:
            how()

    return on_step


def raise_in_callback():
    raise KeyboardInterrupt


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_session_trains_the_bits_that_the_library_trains(lab, config):
    with prepare_session(config()) as session:
        assert session.run.state == "interrupted" and session.run.checkpoints() == []
        state = train_grpo(config(), session)
        assert state.steps == 6 and state.outcome is not None
        assert state.checkpoint_dir == session.run.checkpoints_path
        assert run_lab.same_bits(session.run.adapter_path, lab / "straight/adapter")
        assert isinstance(quick_test(config(), session), str)


def test_the_run_folder_is_the_command_lines_own(lab, config):
    with prepare_session(config(test_question="x", hf_token="hf_secret")) as session:
        train_grpo(session.config, session)
        settings = session.run.settings
    assert set(settings) == set(TrainSettings.model_fields)
    origins = session.run.config["origins"]
    assert origins["lora_r"] == "session" and origins["temperature"] == "default"
    for path in session.run.path.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_the_settings_of_the_command_line_are_taken_as_they_are(lab):
    own = {"model": str(lab / "model"), "data": [str(lab / "table.csv")], "max_steps": 1}
    session, state, path = run_full_pipeline(TrainSettings(**{**run_lab.SMALL, **own}))
    session.close()
    assert state.steps == 1 and os.path.isfile(f"{path}/adapter_model.safetensors")


def test_a_second_training_gets_a_fresh_adapter_on_an_untouched_base(lab, config):
    with prepare_session(config()) as session:
        base = session.base(str(lab / "model"), device="cpu")
        before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        first, second = train_grpo(config(), session), train_grpo(config(), session)
        assert first.run != second.run
        assert run_lab.same_bits(Run(first.run).adapter_path, Run(second.run).adapter_path)
        again = session.base(str(lab / "model"), device="cpu")
        assert again is base and before.keys() == base.state_dict().keys()
        assert all(torch.equal(before[n], t) for n, t in base.state_dict().items())
        assert not any("lora" in name for name, _ in base.named_modules())


@pytest.mark.parametrize("how", [raise_in_callback, press_ctrl_c])
def test_an_interrupted_cell_leaves_a_run_that_goes_on_with_the_same_bits(lab, config, how):
    with prepare_session(config()) as session:
        with pytest.raises(KeyboardInterrupt) as caught:
            train_grpo(config(), session, on_step=stopping_at(4, how))
        assert isinstance(caught.value, Interrupted)
        assert "gptoss resume" in (caught.value.hint or "")
        assert session.state is not None and session.state.outcome is None
        assert 0 < session.state.steps < 6
        state = train_grpo(config(), session)
        assert state.run == session.run.path and state.outcome is not None
        assert state.outcome.resumed_from >= 3
        assert run_lab.same_bits(session.run.adapter_path, lab / "straight/adapter")


def test_the_command_line_goes_on_with_what_a_session_began(lab, config):
    with prepare_session(config()) as session, pytest.raises(KeyboardInterrupt):
        train_grpo(config(), session, on_step=stopping_at(3, press_ctrl_c))
    outcome = resume(ResumeSettings(run=str(session.run.path)))
    assert outcome.adapter is not None
    assert run_lab.same_bits(outcome.adapter, lab / "straight/adapter")


@pytest.mark.slow
def test_two_sessions_in_one_kernel_do_not_disturb_each_other(lab, config):
    """Alone, and step about: each stops twice while the other goes on, and dice roll between."""
    other = {"seed": 7, "lora_r": 4, "learning_rate": 0.02, "dtype": "bfloat16"}
    with prepare_session(config(**other)) as alone:
        train_grpo(alone.config, alone)
    one, two = prepare_session(config()), prepare_session(config(**other))
    for step in (2, 4):
        for session in (one, two):
            torch.rand(3), random.random(), np.random.rand()
            with pytest.raises(KeyboardInterrupt):
                train_grpo(session.config, session, on_step=stopping_at(step, press_ctrl_c))
            quick_test(session.config, session)
    for session in (two, one):
        train_grpo(session.config, session)
    assert run_lab.same_bits(one.run.adapter_path, lab / "straight/adapter")
    assert run_lab.same_bits(two.run.adapter_path, alone.run.adapter_path)


def test_the_process_is_left_as_it_was(lab, config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    seen = []
    secret = config(hf_token="hf_x", wandb_api_key="w" * 40, report_to="wandb", max_steps=1)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    with prepare_session(secret) as session:
        train_grpo(secret, session, on_step=lambda _: seen.append(dict(os.environ)))
        quick_test(secret, session)
    assert seen[0]["WANDB_API_KEY"] == "w" * 40
    assert "HF_TOKEN" not in seen[0]  # a model in a folder needs nothing of the Hub
    assert dict(os.environ) == environment and signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_a_new_kernel_goes_on_with_a_run_that_another_began(lab, config):
    with prepare_session(config()) as session, pytest.raises(KeyboardInterrupt):
        train_grpo(config(), session, on_step=stopping_at(3, press_ctrl_c))
    again = SessionSettings(resume=str(session.run.path), quiet=True)
    with prepare_session(again) as later:
        assert later.sampler.source.step == 4
        state = train_grpo(again, later)
        assert state.run == session.run.path and state.outcome is not None
        assert state.outcome.resumed_from == 4
    assert run_lab.same_bits(session.run.adapter_path, lab / "straight/adapter")


def test_what_is_no_run_of_train_grpo_is_not_taken_up(lab):
    with pytest.raises(ConfigError, match="no run of train-grpo"):
        prepare_session(SessionSettings(resume=str(lab / "straight/checkpoints/step-000003")))


def test_only_what_changes_no_bit_may_change_in_a_run_that_goes_on():
    assert GOES_ON < FREE


def test_other_settings_are_another_run_and_more_steps_the_same(lab, config):
    with prepare_session(config(max_steps=3)) as session:
        first = train_grpo(session.config, session)
        more = train_grpo(config(max_steps=6, lr_scheduler_type="linear"), session)
        assert more.run == first.run and more.steps == 6
        assert more.outcome is not None and more.outcome.resumed_from == 3
        other = train_grpo(config(max_steps=3, learning_rate=0.02), session)
        assert other.run != first.run and other.steps == 3


def test_settings_changed_before_the_first_training_count(lab, config):
    with prepare_session(config()) as session:
        empty = session.run.path
        state = train_grpo(config(max_steps=2, output_dir="mine"), session)
        assert str(state.run) == "mine" and state.steps == 2
        assert not empty.exists()


def test_a_session_that_never_trained_leaves_no_folder(lab, config):
    with prepare_session(config()) as session:
        path = session.run.path
        assert path.is_dir()
    assert not path.exists()


def test_a_session_that_cannot_be_prepared_leaves_no_folder(lab, config, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        prepare_session(config(model="./nowhere"))
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_named_by_the_settings_is_not_overwritten(lab, config):
    named = config(output_dir="mine", max_steps=1)
    with prepare_session(named) as session:
        train_grpo(named, session)
        with pytest.raises(RunFolderError, match="already holds a run"):
            train_grpo(named, session)
        assert open_run("mine").state == "finished"


def test_a_whole_model_is_loaded_anew_for_each_run(lab, config):
    whole = config(adapter="none", max_steps=2)
    with prepare_session(whole) as session:
        first, second = train_grpo(whole, session), train_grpo(whole, session)
    one, two = (Run(state.run).model_path / "model.safetensors" for state in (first, second))
    assert one.read_bytes() == two.read_bytes()


def test_a_quiet_session_shows_nothing_and_a_script_gets_lines(lab, config, capfd):
    run_full_pipeline(config(max_steps=1))[0].close()
    assert capfd.readouterr() == ("", "")
    run_full_pipeline(config(max_steps=1, quiet=False, output_dir="said"))[0].close()
    shown = capfd.readouterr()
    assert "run folder said" in shown.err and "step 1/1" in shown.err
    assert "final adapter of said" in shown.out and "PeftModel.from_pretrained" in shown.out
    assert "\x1b" not in shown.err + shown.out  # no terminal, no colours
