"""Texts to learn from: which files are taken, in which order, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest

from gptoss_tools.data.text import read_corpus
from gptoss_tools.errors import ConfigError, DataError


def put(files: dict[str, str]) -> None:
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def test_a_file_is_one_text_with_plain_line_ends_and_no_byte_order_mark():
    put({"play.txt": "\ufeffone\r\ntwo\rthree\n"})
    corpus = read_corpus(["play.txt"])
    assert corpus.texts == ["one\ntwo\nthree\n"]
    assert (corpus.characters, str(corpus)) == (14, "play.txt")


def test_a_folder_gives_its_texts_in_the_order_of_their_names():
    put({"d/b.md": "b", "d/a.txt": "a", "d/sub/c.txt": "c", "d/x.json": "{}", "d/.h.txt": "no"})
    corpus = read_corpus(["d"])
    assert corpus.texts == ["a", "b", "c"]
    assert str(corpus) == "d/a.txt and 2 more"
    # a file that is named is taken whatever its name, and one reached twice counts once
    assert read_corpus(["d/x.json", "d/*.txt", "d/a.txt"]).texts == ["{}", "a"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_of_a_table_gives_one_text_a_row(kind):
    frame = pd.DataFrame({"n": [1, 2, 3], "body": ["one", None, "th\nree"]})
    if kind == "csv":
        frame.to_csv("t.csv", index=False)
    elif kind == "jsonl":
        frame.to_json("t.jsonl", orient="records", lines=True)
    else:
        frame.to_parquet("t.parquet")
    corpus = read_corpus([f"t.{kind}"], text_column="body")
    assert corpus.texts == ["one", "th\nree"]
    put({"one.txt": "one", "two.txt": "th\nree"})
    assert read_corpus(["one.txt", "two.txt"]).sha256 == corpus.sha256


def test_the_hash_tells_where_one_text_ends():
    put({"a/1.txt": "ab", "a/2.txt": "c", "b/1.txt": "a", "b/2.txt": "bc"})
    assert read_corpus(["a"]).sha256 != read_corpus(["b"]).sha256


@pytest.mark.parametrize(
    ("paths", "more", "words"),
    [
        (["none.txt"], {}, "none.txt does not exist"),
        (["empty.txt"], {}, "no text in it"),
        (["bad.txt"], {}, "bad.txt line 2 is not utf-8 text"),
        (["t.csv"], {}, "t.csv is a table"),
        (["t.csv"], {"text_column": "body"}, "no column 'body'"),
        (["n.jsonl"], {"text_column": "n"}, "n.jsonl row 1, column n: 5 is no text"),
        (["*.md"], {}, "holds no text file"),
        ([], {}, "no text was named"),
    ],
)
def test_what_is_no_text_is_refused_by_name(paths, more, words):
    put({"empty.txt": " \n", "t.csv": "n,prompt\n1,x\n", "n.jsonl": '{"n": 5}\n'})
    Path("bad.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(DataError, match=words.replace("*", r"\*")):
        read_corpus(paths, **more)


def test_an_unknown_encoding_is_a_setting_at_fault():
    put({"a.txt": "a"})
    with pytest.raises(ConfigError, match="utf-99"):
        read_corpus(["a.txt"], encoding="utf-99")
