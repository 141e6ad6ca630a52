"""Parts by name, by address, and what a wrong name is answered with."""

from __future__ import annotations

import pytest

from gptoss_tools import registry
from gptoss_tools.errors import ConfigError


def test_a_part_is_found_by_its_name():
    @registry.register("test_kind", "alpha")
    def alpha(): ...

    assert registry.get("test_kind", "alpha") is alpha
    assert registry.names("test_kind") == ["alpha"]


def test_a_name_cannot_be_taken_twice():
    registry.register("test_taken", "one")(len)
    registry.register("test_taken", "one")(len)  # the same object again is a reload, not a clash
    with pytest.raises(ValueError, match="already registered"):
        registry.register("test_taken", "one")(max)


def test_an_unknown_name_names_the_nearest_one():
    registry.register("test_near", "boltzmann")(len)
    with pytest.raises(ConfigError, match="unknown test_near 'boltzman'") as caught:
        registry.get("test_near", "boltzman")
    assert "did you mean boltzmann?" in caught.value.hint


def test_a_module_that_ends_the_program_when_imported_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_script_here.py").write_text("raise SystemExit(5)\n")
    with pytest.raises(ConfigError, match=r"cannot import a_script_here \(SystemExit: 5\)"):
        registry.get("reward", "a_script_here:f")


def test_an_address_is_imported_also_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    (tmp_path / "my_rewards_here.py").write_text("class Box:\n    f = staticmethod(abs)\n")
    assert registry.get("reward", "my_rewards_here:Box.f") is abs


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("no_such_module_here:f", "cannot import"),
        ("math:sqroot", "has no 'sqroot'"),
        (":f", "not of the form"),
        ("math:", "not of the form"),
        ("math:pi", "is a float, which cannot be called"),
    ],
)
def test_a_wrong_address_is_an_error_with_a_reason(address, message):
    with pytest.raises(ConfigError, match=message):
        registry.get("reward", address)
