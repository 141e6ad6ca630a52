"""The settings of a session: names, secrets, and what a run gets of them."""

from __future__ import annotations

import re

import pytest
from pydantic import Field

from gptoss_tools.errors import ConfigError
from gptoss_tools.load import COMMAND_SETTINGS, load
from gptoss_tools.notebook import SessionSettings
from gptoss_tools.notebook.settings import ELSEWHERE
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training import configuring
from gptoss_tools.training.configuring import make_config


def refused(**values) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        SessionSettings(**values)
    return caught.value


def test_an_unknown_name_is_refused_with_the_one_that_was_meant():
    assert refused(lora_rnk=3).hint == "did you mean lora_r?"
    assert refused(lerning_rate=1e-5).hint == "did you mean learning_rate?"
    assert "gptoss train-grpo -h" in (refused(zzzz=1).hint or "")


def test_every_name_of_the_original_leads_somewhere():
    for name, meant in ELSEWHERE.items():
        assert name not in SessionSettings.model_fields
        assert refused(**{name: 1}).hint == f"did you mean {meant}?"
        targets = meant.partition(":")[0].replace(" or ", " and ").split(" and ")
        assert set(targets) <= set(SessionSettings.model_fields), name


def test_a_wrong_value_is_one_sentence():
    assert str(refused(lora_r=0)) == "`lora_r`: Input should be greater than or equal to 1"
    assert "repeats `beta`" in str(refused(trainer={"beta": 1.0}))


def test_what_only_the_command_line_can_do_is_refused():
    assert "`modal` has no meaning in a session" in str(refused(modal=True))
    assert "`dry_run` has no meaning in a session" in str(refused(dry_run=True))
    assert refused(dry_run=True).hint == "gptoss train-grpo takes --dry-run"
    assert refused(nodes=2).hint == "--gpu H100:8"


def test_secrets_are_in_nothing_that_is_written_or_shown():
    config = SessionSettings(hf_token="hf_hush", wandb_api_key="w_hush")
    shown = [repr(config), str(config), config.model_dump_json(), str(config.model_dump())]
    shown += [str(config.training().model_dump()), str(config.origins())]
    assert not any("hush" in text for text in shown)


def test_a_wrong_secret_is_not_shown_either():
    assert "hush" not in str(refused(hf_token=["hush"]))


def test_a_run_gets_the_training_settings_and_nothing_else():
    config = SessionSettings(lora_r=3, quiet=True)
    assert type(config.training()) is TrainSettings
    assert config.training() == TrainSettings(lora_r=3)
    assert SessionSettings.of(TrainSettings(lora_r=3)).model_fields_set == {"lora_r"}


def test_a_parameter_of_trl_needs_no_setting_of_ours():
    """The recipe for a new training parameter: an argument of GRPOConfig goes through `trainer`."""
    config = SessionSettings(trainer={"delta": 1.5, "adam_beta2": 0.99}, device="cpu")
    made = make_config(config.training(), "unused")
    assert made.delta == 1.5 and made.adam_beta2 == 0.99


def test_a_parameter_that_trl_does_not_have_is_refused_with_the_near_miss():
    config = SessionSettings(trainer={"adam_beta3": 0.99}, device="cpu")
    with pytest.raises(ConfigError) as caught:
        make_config(config.training(), "unused")
    assert caught.value.hint == "did you mean adam_beta2?"


def test_the_training_parameter_of_contributing_gets_everything_a_setting_has(
    repository, monkeypatch, tmp_path
):
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## A training parameter, in one place")[1].split("\n## ")[0]
    [block] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    # The group stands for the whole: its fields are added to those of train-grpo.
    names = {"Settings": TrainSettings, "Field": Field}
    exec(compile("from __future__ import annotations\n" + block, "CONTRIBUTING.md", "exec"), names)
    extended = names["GrpoLossSettings"]
    monkeypatch.setitem(COMMAND_SETTINGS, "train-grpo", extended)
    monkeypatch.setattr(configuring, "SAME_NAME", [*configuring.SAME_NAME, "delta"])

    def delta(**sources):
        loaded = load(extended, "train-grpo", **{"environ": {}, **sources}).settings
        return make_config(loaded.model_copy(update={"device": "cpu"}), "unused").delta

    assert delta() is None
    assert delta(environ={"GPTOSS_DELTA": "1.5"}) == 1.5
    assert delta(flags={"delta": 1.75}, environ={"GPTOSS_DELTA": "1.5"}) == 1.75
    (tmp_path / "gptoss.toml").write_text("[train-grpo]\ndelta = 1.25\n")
    assert delta() == 1.25
    assert make_config(extended(delta=2.0, device="cpu"), "unused").delta == 2.0
