"""Tensors are merged in pieces that fit the caches, and to the bits of merging them whole."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from gptoss_tools.export import changes
from gptoss_tools.export.rounding import Sums
from gptoss_tools.export.safetensors_io import read_header


@pytest.fixture
def change(tmp_path):
    """A LoRA on a matrix with gpt-oss's 2880 inputs and 300 rows: 4 pieces of 64, one of 44."""
    torch.manual_seed(0)
    base = {"w": torch.randn(300, 2880).mul_(0.02).to(torch.bfloat16)}
    lora = {"a": torch.randn(16, 2880) * 0.01, "b": torch.randn(300, 16) * 0.01}
    save_file(base, tmp_path / "base.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")
    refs = read_header(tmp_path / "base.safetensors") | read_header(tmp_path / "lora.safetensors")
    return changes.Change(refs["w"], a=refs["a"], b=refs["b"], scale=2.0)


def merged(change) -> tuple[torch.Tensor, Sums, int]:
    pieces, sums = list(change.merged()), Sums()
    for _, stored, values in pieces:
        sums.add(stored, values, values.to(stored.dtype))
    return torch.cat([values for _, _, values in pieces]), sums, len(pieces)


def test_pieces_give_the_bits_and_the_figures_of_the_whole(change, monkeypatch):
    values, sums, count = merged(change)
    monkeypatch.setattr(changes, "CHUNK", 1 << 24)
    whole, of_whole, one = merged(change)
    assert (count, one) == (5, 1)
    assert torch.equal(values, whole)
    assert sums.kept == pytest.approx(of_whole.kept, rel=1e-5)
    assert sums.delta == pytest.approx(of_whole.delta, rel=1e-5)


def test_a_tensor_of_few_long_rows_still_has_pieces(tmp_path):
    save_file({"w": torch.zeros(3, 1000)}, tmp_path / "few.safetensors")
    ref = read_header(tmp_path / "few.safetensors")["w"]
    assert list(ref.pieces(10)) == [(0, 1), (1, 2), (2, 3)]
    assert list(ref.pieces(2000)) == [(0, 2), (2, 3)]


def test_threads_are_given_back_after_the_last_piece_and_after_an_error(change):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pieces = change.merged()
        next(pieces)
        assert torch.get_num_threads() == 1
        pieces.close()
        assert torch.get_num_threads() == 2
        merged(change)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
