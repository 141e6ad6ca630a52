"""docs/seeds.md names flags and files: they exist."""

import re

from gptoss_tools.load import COMMAND_SETTINGS

GIVEN_TO_ALL = {"config", "json", "quiet", "verbose"}


def rows(repository):
    """(number, what is here) of every row."""
    for line in (repository / "docs/seeds.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (00\d-\d\d) \|", line):
            yield match[1], line.strip("| ").split(" | ")[2]


def test_every_item_has_one_row(repository):
    counts = {"000": 68, "001": 32, "002": 48, "003": 57}
    expected = [f"{seed}-{n:02}" for seed, last in counts.items() for n in range(1, last + 1)]
    assert [number for number, _ in rows(repository)] == expected


def test_the_flags_it_names_are_flags(repository):
    fields = {name.removesuffix("_") for m in COMMAND_SETTINGS.values() for name in m.model_fields}
    known = {name.replace("_", "-") for name in fields | GIVEN_TO_ALL}
    for number, here in rows(repository):
        for flag in re.findall(r"--([a-z][a-z-]*)", here):
            assert flag in known, f"{number}: --{flag}"


def test_the_files_it_names_are_there(repository):
    source = repository / "src/gptoss_tools"
    for number, here in rows(repository):
        for path in re.findall(r"`([a-z_]+/[\w*]+\.py)`", here):
            assert list(source.glob(path)), f"{number}: {path}"
