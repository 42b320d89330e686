"""Pieces of tensors on disk: those of all layers of a large model, over all samples, don't fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor


class Pieces:
    """Tuples of tensors by name, in the order they were added; gone from the disk when this is.

    Args:
        names: that pieces will be added under.
        device: that they are read to.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._folder, self._device = TemporaryDirectory(prefix="onnxquant-"), device
        self._files: Mapping[str, Path] = {
            name: Path(self._folder.name) / str(number) for number, name in enumerate(dict.fromkeys(names))
        }
        self._widths: dict[str, int] = {}
        for path in self._files.values():
            path.touch()

    def add(self, name: str, piece: Sequence[Tensor]) -> None:
        """Add a tuple, of as many tensors as the others of this name."""
        self._widths[name] = len(piece)
        with self._files[name].open("ab") as file:
            for tensor in piece:
                np.save(file, tensor.cpu().numpy())

    def read(self, name: str) -> list[tuple[Tensor, ...]]:
        """All tuples of a name."""
        path, arrays = self._files[name], []
        with path.open("rb") as file:
            while file.tell() < path.stat().st_size:
                arrays.append(torch.from_numpy(np.load(file)).to(self._device))
        return list(zip(*[iter(arrays)] * self._widths.get(name, 1), strict=True))
