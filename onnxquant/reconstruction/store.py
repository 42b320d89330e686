"""Tensors of many samples on disk: a module's inputs and outputs for all calibration data don't fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxquant.errors import OnnxquantError

Samples: TypeAlias = NDArray[np.int64]
"""Numbers of samples."""


class Stored:
    """A tensor of all samples: of each as many rows of axis 0 as it has.

    Args:
        name: of the tensor, for messages.
        folder: to keep it in.
        samples: how many.
    """

    def __init__(self, name: str, folder: Path, samples: int) -> None:
        self._name, self._path, self._samples = name, Path(mkdtemp(dir=folder)) / "values", samples
        self._values: NDArray[np.generic] | None = None

    def write(self, chosen: Samples, value: Tensor) -> None:
        """Take in what a run of some samples gave.

        Raises:
            OnnxquantError: axis 0 doesn't divide into the samples.
        """
        if not value.ndim or value.shape[0] % len(chosen):
            raise OnnxquantError(
                f"tensor {self._name}: axis 0 of its shape {tuple(value.shape)} doesn't follow the samples, so they "
                "can't be told apart; export the model with a dynamic batch"
            )
        rows = value.detach().cpu().numpy().reshape(len(chosen), -1, *value.shape[1:])
        if self._values is None:
            self._values = np.memmap(self._path, rows.dtype, "w+", shape=(self._samples, *rows.shape[1:]))
        self._values[chosen] = rows

    def read(self, chosen: Samples) -> Tensor:
        """The rows of some samples, one after the other."""
        assert self._values is not None
        rows = np.asarray(self._values[chosen])
        return torch.from_numpy(rows.reshape(-1, *rows.shape[2:]))

    def remove(self) -> None:
        """Give the disk back."""
        self._values = None
        self._path.unlink(missing_ok=True)


def store(
    folder: Path, samples: int, names: Sequence[str], runs: Iterable[tuple[Samples, Mapping[str, Tensor]]]
) -> dict[str, Stored]:
    """Keep some tensors of all runs.

    Args:
        folder: to keep them in.
        samples: in all runs together.
        names: of the tensors.
        runs: of each its samples, and the tensors.
    """
    stored = {name: Stored(name, folder, samples) for name in names}
    for chosen, values in runs:
        for name in names:
            stored[name].write(chosen, values[name])
    return stored


def read(stored: Mapping[str, Stored], chosen: Samples) -> dict[str, Tensor]:
    """Some samples of all of them."""
    return {name: each.read(chosen) for name, each in stored.items()}


def chunks(samples: int, size: int) -> Iterator[Samples]:
    """All samples, `size` at a time; the last chunk is filled up by repeating its last sample."""
    for first in range(0, samples, size):
        yield np.minimum(np.arange(first, first + size), samples - 1)
