"""Files are copied around holes, which another thread fills."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.errors import DataError
from gptoss_tools.export import files, merge


@given(
    content=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6, unique=True),
    kernel=st.booleans(),
)
def test_everything_but_the_holes_is_copied(content, cuts, kernel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    cuts = sorted(min(cut, len(content)) for cut in cuts)
    holes = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    (folder / "a").write_bytes(content)
    (folder / "b").write_bytes(b"\0" * len(content))
    wanted = bytearray(content)
    for offset, size in holes:
        wanted[offset : offset + size] = b"\0" * size
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        if not kernel:
            patch.delattr(os, "copy_file_range", raising=False)
        how = files.fill(folder / "a", folder / "b", counted.append, holes)
    assert (folder / "b").read_bytes() == wanted
    assert sum(counted) == len(content) - sum(size for _, size in holes)
    assert how == ("copy_file_range" if kernel else "read and write")


def test_a_kernel_that_cannot_go_on_is_helped_out(tmp_path, monkeypatch):
    content = os.urandom(1000)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"\0" * 1000)
    real, calls = os.copy_file_range, []

    def once(source, target, count, at, to):
        calls.append(at)
        if len(calls) > 1:
            raise OSError(18, "across devices")
        return real(source, target, 10, at, to)

    monkeypatch.setattr(os, "copy_file_range", once)
    assert files.fill(tmp_path / "a", tmp_path / "b", lambda size: None, [(500, 3)]) == (
        "read and write"
    )
    assert (tmp_path / "b").read_bytes() == content[:500] + b"\0\0\0" + content[503:]
    assert calls == [0, 10]


def test_a_merge_that_fails_ends_the_copy(base, adapter, tmp_path, monkeypatch):
    def fail(*_):
        raise DataError("values too large")

    monkeypatch.setattr(merge, "measure", fail)
    with pytest.raises(DataError, match="values too large"):
        merge.export_mxfp4(adapter, base, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_copy_that_fails_ends_the_merge(base, adapter, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(merge, "fill", fail)
    monkeypatch.setattr(files, "_reflink", lambda reader, writer: False)
    with pytest.raises(OSError, match="Input/output error"):
        merge.export_mxfp4(adapter, base, tmp_path / "out")
    assert not list(tmp_path.iterdir())
