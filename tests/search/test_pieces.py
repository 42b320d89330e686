"""Pieces come back from the disk as they were, and leave nothing behind."""

from pathlib import Path

import torch

from onnxquant.search.pieces import Pieces


def test_pieces_come_back_by_name_in_the_order_they_were_added():
    pieces = Pieces(["a", "b", "none"], torch.device("cpu"))
    first, second = (torch.randn(2, 3), torch.randn(4)), (torch.randn(5, 3).T, torch.randn(0, 4))
    pieces.add("a", first)
    pieces.add("b", (torch.ones(1),))
    pieces.add("a", second)
    found = pieces.read("a")
    assert [len(piece) for piece in found] == [2, 2]
    for piece, expected in zip(found, (first, second), strict=True):
        assert all(map(torch.equal, piece, expected))
    assert pieces.read("b")[0][0].item() == 1
    assert pieces.read("none") == []
    assert pieces.read("a")[0][0].equal(first[0]), "as often as is asked"


def test_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pieces = Pieces(["a"], torch.device("cpu"))
    pieces.add("a", (torch.ones(3),))
    assert list(Path(tmp_path).rglob("*"))
    del pieces
    assert not list(Path(tmp_path).rglob("*"))
