"""Where credentials come from, and Google Drive; stand-ins for the modules of Colab and Kaggle."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gptoss_tools.notebook import SessionSettings, places
from gptoss_tools.notebook.places import find_credentials, mount_drive

HUB = {"model": "openai/gpt-oss-20b"}


def colab(monkeypatch, secrets, mounted=()):
    """Colab's modules; a secret that is not there raises, as the real one does."""

    def get(name):
        if name not in secrets:
            raise LookupError(f"Secret {name} does not exist.")
        return secrets[name]

    modules = {
        "google": ModuleType("google"),
        "google.colab": ModuleType("google.colab"),
        "google.colab.userdata": SimpleNamespace(get=get),
        "google.colab.drive": SimpleNamespace(mount=mounted.append if mounted == [] else None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def kaggle(monkeypatch, secrets):
    client = SimpleNamespace(get_secret=secrets.__getitem__)
    module = SimpleNamespace(UserSecretsClient=lambda: client)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)


def sources(config):
    found, _ = find_credentials(config)
    return {c.variable: (c.source, c.value.get_secret_value()) for c in found}


def test_the_first_of_config_environment_colab_and_kaggle_is_taken(monkeypatch):
    kaggle(monkeypatch, {"HF_TOKEN": "from kaggle"})
    assert sources(SessionSettings(**HUB)) == {"HF_TOKEN": ("Kaggle secrets", "from kaggle")}
    colab(monkeypatch, {"HF_TOKEN": "from colab"})
    assert sources(SessionSettings(**HUB)) == {"HF_TOKEN": ("Colab secrets", "from colab")}
    monkeypatch.setenv("HF_TOKEN", "from variable")
    assert sources(SessionSettings(**HUB)) == {"HF_TOKEN": ("environment", "from variable")}
    given = SessionSettings(**HUB, hf_token="from config")
    assert sources(given) == {"HF_TOKEN": ("config", "from config")}


def test_only_what_something_needs_is_looked_for(monkeypatch):
    colab(monkeypatch, {"HF_TOKEN": "x", "WANDB_API_KEY": "y"})
    assert sources(SessionSettings(model="tiny")) == {}
    tracked = SessionSettings(model="tiny", report_to="wandb")
    assert sources(tracked) == {"WANDB_API_KEY": ("Colab secrets", "y")}


def test_the_judges_key_is_for_openai_or_was_given_for_another(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    judged = {"model": "tiny", "reward": ["rubric"], "judge_model": "j"}
    own = {**judged, "judge_url": "http://localhost:8000/v1"}
    assert sources(SessionSettings(**judged)) == {"OPENAI_API_KEY": ("environment", "sk")}
    assert sources(SessionSettings(**own)) == {}
    assert sources(SessionSettings(**own, openai_api_key="k"))["OPENAI_API_KEY"] == ("config", "k")


def test_what_is_not_found_is_said_without_a_value(monkeypatch):
    colab(monkeypatch, {})
    found, notes = find_credentials(SessionSettings(**HUB, wandb_api_key="w_secret"))
    assert found == []
    assert notes == [
        "Colab secrets did not give HF_TOKEN: Secret HF_TOKEN does not exist",
        "HF_TOKEN was not found",
    ]


def test_nobody_sees_a_credential_by_printing_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in repr(find_credentials(SessionSettings(**HUB)))


def test_drive_is_mounted_where_there_is_one(monkeypatch, tmp_path):
    mounted: list[str] = []
    colab(monkeypatch, {}, mounted)
    monkeypatch.setattr(places, "DRIVE", tmp_path / "drive")
    home = mount_drive(pytest.fail)
    assert mounted == [str(tmp_path / "drive")]
    assert home == tmp_path / "drive/MyDrive/gptoss" and home.is_dir()


def test_without_a_drive_files_stay_here():
    said: list[str] = []
    assert mount_drive(said.append) is None
    assert said == ["there is no Google Drive here: files stay on this machine"]


def test_on_drive_runs_and_exports_are_kept_there(monkeypatch, tmp_path, lab, config):
    from gptoss_tools.notebook import run_full_pipeline

    colab(monkeypatch, {}, [])
    monkeypatch.setattr(places, "DRIVE", tmp_path / "drive")
    session, state, path = run_full_pipeline(config(mount_drive=True, max_steps=1))
    session.close()
    home = tmp_path / "drive/MyDrive/gptoss"
    assert state.run == home / "runs/grpo-001"
    assert Path(path) == home / "exports/grpo-001-adapter"
