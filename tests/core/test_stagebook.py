"""pipeline.json: what is done, and why something is not."""

from __future__ import annotations

import json

import pytest

from gptoss_tools.core.stagebook import Book, fingerprint
from gptoss_tools.errors import RunFolderError


def test_a_stage_is_new_interrupted_done_or_changed(tmp_path):
    book = Book(tmp_path)
    assert book.state("train", "a") == "new"
    book.begin("train", "a", run="runs/x")
    assert Book(tmp_path).state("train", "a") == "interrupted"
    book.finish("train", 1.23456, {"steps": 3})
    again = Book(tmp_path)
    assert again.state("train", "a") == "done" and again.state("train", "b") == "changed"
    entry = again.entry("train")
    assert (entry["run"], entry["seconds"], entry["figures"]) == ("runs/x", 1.235, {"steps": 3})


def test_a_stage_that_begins_again_undoes_those_after_it_and_no_other(tmp_path):
    book = Book(tmp_path)
    for name in ("prepare", "train", "export"):
        book.begin(name, "a")
        book.finish(name, 1.0, {})
    book.begin("train", "a")
    states = [Book(tmp_path).state(name, "a") for name in ("prepare", "train", "export")]
    assert states == ["done", "interrupted", "interrupted"]
    assert list(json.loads(book.path.read_text())["stages"]) == ["prepare", "train", "export"]


def test_a_fingerprint_tells_values_apart_and_not_the_order_of_keys():
    assert fingerprint("x", {"a": 1, "b": None}) == fingerprint("x", {"b": None, "a": 1})
    assert len({fingerprint(part) for part in (1, "1", 1.5, [1], {"a": 1}, None, "\ud800")}) == 7


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 1}', '{"stages": 3}', '{"stages": {"train": {}}}'],
)
def test_a_file_that_is_no_book_is_refused(tmp_path, text):
    (tmp_path / "pipeline.json").write_text(text)
    with pytest.raises(RunFolderError, match="cannot be read"):
        Book(tmp_path)
