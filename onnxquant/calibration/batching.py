"""Samples put together into what one run of the model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.samples import Dataset, InputSpec, Sample
from onnxquant.errors import OnnxquantError


@dataclass(frozen=True)
class Batch:
    """What one run takes.

    Attributes:
        feeds: an array for every input; the samples follow each other on axis 0.
        names: of the samples.
        labels: of the samples.
        valid: number of samples; a fixed batch axis is filled up by repeating the last one.
        padded: number of repeats after them.
    """

    feeds: dict[str, NDArray[Any]]
    names: tuple[str, ...]
    labels: tuple[int | None, ...]
    valid: int
    padded: int = 0

    def without_padding(self, output: NDArray[Any]) -> NDArray[Any]:
        """`output` of the model without the rows that belong to repeats.

        Axis 0 may hold more than the batch: windows, heads or patches of each sample follow each other there.
        """
        rows = self.valid + self.padded
        if self.padded and output.ndim and output.shape[0] and output.shape[0] % rows == 0:
            return output[: output.shape[0] // rows * self.valid]
        return output


def batches(dataset: Dataset, batch_size: int, specs: Sequence[InputSpec]) -> Iterator[Batch]:
    """Go through `dataset` once, `batch_size` samples at a time, or as many as the model's fixed batch axis says.

    Raises:
        OnnxquantError: samples that would share a batch differ in shape; the message names one.
    """
    if batch_size < 1:
        raise OnnxquantError(f"--batch-size {batch_size}: must be at least 1")
    fixed = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)}
    size = batch_size if not fixed else max(fixed) if len(fixed) == 1 else 1
    for group in _groups(dataset, size):
        yield _join(group, size - len(group) if fixed and _is_row(group[0]) else 0)


def _groups(dataset: Dataset, size: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in dataset:
        if _is_row(sample):
            group.append(sample)
        if group and (len(group) == size or not _is_row(sample)):
            yield group
            group = []
        if not _is_row(sample):
            yield [sample]
    if group:
        yield group


def _is_row(sample: Sample) -> bool:
    """Whether the sample can be put together with others."""
    return all(array.shape[:1] == (1,) for array in sample.feeds.values())


def _join(samples: Sequence[Sample], padded: int) -> Batch:
    first = samples[0]
    for sample in samples:
        for name, array in sample.feeds.items():
            if array.shape != first.feeds[name].shape:
                raise OnnxquantError(
                    f"{sample.name}: input {name} has shape {array.shape}, but {first.name} before it "
                    f"{first.feeds[name].shape}; give all samples one shape, or use --batch-size 1"
                )
    rows = [*samples, *[samples[-1]] * padded]
    feeds = first.feeds
    if len(rows) > 1:
        feeds = {name: np.concatenate([sample.feeds[name] for sample in rows]) for name in feeds}
    names, labels = tuple(sample.name for sample in samples), tuple(sample.label for sample in samples)
    return Batch(feeds, names, labels, len(samples), padded)
