"""Data sets of arrays that are fed to the model as they are, and the checks that they fit it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.images import open_pixels
from onnxquant.calibration.samples import Dataset, Feed, InputSpec, Sample
from onnxquant.errors import OnnxquantError
from onnxquant.preprocessing import Preprocessing

LABELS = "labels"
"""The key, beside those of the inputs, that holds the class index of every sample."""


class FeedDataset(Dataset):
    """Samples from feeds; a feed whose arrays share a leading batch axis of n is n samples.

    Args:
        name: of the source.
        feeds: an array for every input, or one feed with all samples.
        specs: the inputs of the model.
        labels: class index of every sample, where known.

    Raises:
        OnnxquantError: names, shapes or dtypes are not those of the model's inputs.
    """

    def __init__(
        self, name: str, feeds: Sequence[Feed], specs: Sequence[InputSpec], labels: Sequence[int] | None = None
    ) -> None:
        self.name, self.labels = name, labels
        self._feeds, self._specs = feeds, specs
        self._rows = [
            _check_feed(name if len(feeds) == 1 else f"{name}: feed {position}", feed, specs)
            for position, feed in enumerate(feeds)
        ]
        self._ends = list(itertools.accumulate(1 if rows is None else rows for rows in self._rows))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def feeds(self) -> int:
        """Number of feeds, each of one sample or more."""
        return len(self._feeds)

    def unsplit(self) -> FeedDataset:
        """The same feeds, each of which is one sample, whatever its batch axis: what one run of a model took."""
        whole = FeedDataset(self.name, self._feeds, self._specs)
        whole._rows = [None] * len(self._feeds)
        whole._ends = list(range(1, len(self._feeds) + 1))
        return whole

    def __getitem__(self, index: int, /) -> Sample:
        index = range(len(self))[index]
        position = bisect.bisect_right(self._ends, index)
        rows = self._rows[position]
        row = index - self._ends[position] + (rows or 0)
        part = ... if rows is None else slice(row, row + 1)
        name, feeds = f"{self.name}[{index}]", {}
        for spec in self._specs:
            with np.errstate(over="ignore"):  # a value that overflows the model's float16 is reported below
                feeds[spec.name] = np.asarray(self._feeds[position][spec.name][part], spec.dtype, order="C")
            if np.issubdtype(spec.dtype, np.floating) and not np.isfinite(feeds[spec.name]).all():
                raise OnnxquantError(
                    f"{name}: input {spec.name} holds NaN or infinite values as {spec.dtype}; take out the sample"
                )
        return Sample(name, feeds, None if self.labels is None else self.labels[index])


def open_arrays(
    name: str,
    arrays: NDArray[Any] | Mapping[str, NDArray[Any]],
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
) -> Dataset:
    """Arrays that hold all samples: keyed by input name, or one array without a name for the single input.

    A single uint8 array for an input of another dtype, under any key, holds images, which go through the preprocessing.

    Raises:
        OnnxquantError: the arrays don't fit the model.
    """
    given = arrays if isinstance(arrays, Mapping) else {specs[0].name: arrays}
    keyed = {key: np.asanyarray(array) for key, array in given.items()}
    names = {spec.name for spec in specs}
    labels = keyed.pop(LABELS) if LABELS in keyed and LABELS not in names else None
    if len(keyed) == 1 and len(specs) == 1:
        (array,) = keyed.values()
        if array.dtype == np.uint8 and specs[0].dtype != np.uint8:
            return open_pixels(
                name, array, specs, preprocessing, _check_labels(name, labels, len(array) if array.ndim else 0)
            )
    dataset = FeedDataset(name, [keyed], specs)
    dataset.labels = _check_labels(name, labels, len(dataset))
    return dataset


def load_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The content of a .npy file, mapped rather than read, or of a .npz file. Pickled objects are never loaded.

    Raises:
        OnnxquantError: it is neither, is truncated or holds Python objects.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except Exception:  # a dozen unrelated types, from numpy's header parser, zipfile and zlib
        raise OnnxquantError(
            f"{path}: not a {path.suffix} file, a truncated one, or one with Python objects, which are never loaded; "
            "save plain arrays of numbers with numpy.save or numpy.savez"
        ) from None


def _check_feed(where: str, feed: Feed, specs: Sequence[InputSpec]) -> int | None:
    """The number of samples in a feed that fits the model; None where it can't be split."""
    if feed.keys() != {spec.name for spec in specs}:
        raise OnnxquantError(
            f"{where}: has arrays for {', '.join(feed) or 'nothing'}, but the model's inputs are "
            f"{', '.join(spec.name for spec in specs)}; name the arrays like the inputs"
        )
    leading = {feed[spec.name].shape[:1] for spec in specs}
    rows = next(iter(leading))[0] if len(leading) == 1 and () not in leading else None
    for spec in specs:
        array = feed[spec.name]
        if not _castable(array.dtype, spec.dtype):
            raise OnnxquantError(
                f"{where}: input {spec.name} has dtype {array.dtype}, but the model takes {spec}; convert the array"
                + (" (only uint8 images of a single-input model are scaled)" if array.dtype == np.uint8 else "")
            )
        fits = len(array.shape) == len(spec.shape) and all(
            wanted == given or not isinstance(wanted, int) or (axis == 0 and rows is not None)
            for axis, (wanted, given) in enumerate(zip(spec.shape, array.shape, strict=True))
        )
        if not fits:
            raise OnnxquantError(
                f"{where}: input {spec.name} has shape {array.shape}, but the model takes {spec}; reshape it"
            )
        if not array.size:
            raise OnnxquantError(
                f"{where}: input {spec.name} is empty, its shape is {array.shape}; give at least one sample"
            )
    return rows


def _castable(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Floats of any width are one; integers only widen; nothing else is converted, least of all integers to floats."""
    if np.issubdtype(given, np.floating) and np.issubdtype(wanted, np.floating):
        return True
    return given == wanted or (np.issubdtype(wanted, np.integer) and np.can_cast(given, wanted, "safe"))


def _check_labels(name: str, labels: NDArray[Any] | None, samples: int) -> list[int] | None:
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise OnnxquantError(
            f"{name}: {LABELS} must be class indices, integers of shape ({samples},), not {labels.dtype} {labels.shape}"
        )
    if len(labels) != samples:
        raise OnnxquantError(f"{name}: {len(labels)} {LABELS} for {samples} samples; give one for every sample")
    return [int(label) for label in labels]
