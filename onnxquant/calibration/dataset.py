"""Data for calibration and measurement: open it from wherever it lies, take part of it, go through it in batches.

Data is explicit: nothing is ever made up, and what does not fit the model is an error that names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.arrays import FeedDataset, load_arrays, open_arrays
from onnxquant.calibration.batching import Batch, batches
from onnxquant.calibration.images import open_images
from onnxquant.calibration.samples import Dataset, Feed, InputSpec, Sample, Subset, input_specs
from onnxquant.calibration.scripts import load_polygraphy_json, materialise, run_script, split_script
from onnxquant.errors import OnnxquantError
from onnxquant.preprocessing import Preprocessing

__all__ = [
    "Batch",
    "DataSource",
    "Dataset",
    "InputSpec",
    "Sample",
    "batches",
    "input_specs",
    "open_dataset",
    "parse_slice",
    "split_held",
    "take",
]

DataSource: TypeAlias = "str | os.PathLike[str] | NDArray[Any] | Mapping[str, NDArray[Any]] | Iterable[Feed] | Dataset"

KINDS = "a folder or .zip of images, .npz, .npy, polygraphy's .json or script.py[:function]"

GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Its multiples modulo 1 fill an interval evenly."""


def open_dataset(
    source: DataSource,
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
    per_class: slice | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Dataset:
    """The samples in `source`, for a model with inputs `specs`.

    Args:
        source: path of a folder or .zip of images, of a .npz, .npy or polygraphy .json file or of a script (``path.py``
            or ``path.py:function``, which is executed); or an array, a dict of arrays, an iterable of feed dicts, or a
            data set.
        specs: from `input_specs`.
        preprocessing: from the model's metadata or the user; needed for images only.
        per_class: keeps these positions of every class, in file order.
        classes: the model's class names in the order of its outputs, to find labels from folder names.
        limit: keep so many samples, spread evenly; of a script or iterable no more feeds than that are taken.

    Raises:
        OnnxquantError: the source can't be read or does not fit the model.
    """
    if not specs:
        raise OnnxquantError("model: it has no inputs, so there is nothing to feed data to")
    if limit is not None and limit < 1:
        raise OnnxquantError(f"--limit {limit}: must be at least 1")
    dataset = _open(source, specs, preprocessing, classes, limit)
    if per_class is not None:
        dataset = _slice_classes(dataset, per_class)
    return dataset if limit is None else take(dataset, limit)


def _open(
    source: DataSource,
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
    classes: Sequence[str] | None,
    limit: int | None,
) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, (np.ndarray, Mapping)):
        return open_arrays("data", source, specs, preprocessing)
    if not isinstance(source, (str, os.PathLike)):
        return FeedDataset("data", materialise("data", source, limit), specs)
    path = Path(source)
    script = split_script(str(source))
    existing = script[0] if script else path
    if not existing.exists():
        raise OnnxquantError(f"{existing}: no such file or folder; give {KINDS}")
    if script:
        return FeedDataset(str(source), run_script(*script, limit), specs)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".zip":
        return open_images(path, specs, preprocessing, classes)
    if suffix in {".npz", ".npy"}:
        return open_arrays(str(path), load_arrays(path), specs, preprocessing)
    if suffix == ".json":
        return FeedDataset(str(path), load_polygraphy_json(path, limit), specs)
    raise OnnxquantError(f"{path}: not a kind of data that onnxquant reads; give {KINDS}")


def parse_slice(text: str) -> slice:
    """``4500:``, ``:100`` or ``-50:`` as a slice.

    Raises:
        OnnxquantError: it is no such text.
    """
    try:
        bounds = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        bounds = []
    if len(bounds) != 2:
        raise OnnxquantError(
            f"--per-class {text}: must be START:STOP, either of which may be left out, for example 4500: or :100"
        )
    return slice(*bounds)


def take(dataset: Dataset, n: int) -> Dataset:
    """`n` samples spread evenly over `dataset` and its classes, always the same ones; all where there are no more."""
    return dataset if n >= len(dataset) else Subset(dataset, _spread(dataset, range(len(dataset)), n))


def split_held(dataset: Dataset, n: int) -> tuple[Subset, Subset]:
    """Data to calibrate on and data to judge the result on: disjoint, each at most `n` samples and evenly spread.

    Of fewer than 2 `n` samples a quarter is held back; of a single one, none.
    """
    total = len(dataset)
    held_size = n if total >= 2 * n else min(n, max(total // 4, min(total - 1, 1)))
    held = _spread(dataset, range(total), held_size)
    rest = sorted(set(range(total)).difference(held))
    return Subset(dataset, _spread(dataset, rest, min(n, len(rest)))), Subset(dataset, held)


def _spread(dataset: Dataset, indices: Sequence[int], n: int) -> list[int]:
    """One of `indices` from each of `n` equal stretches, class by class where there are labels.

    It is not the same place in every stretch: where the classes of unlabelled data take turns, that could be one class.
    """
    if dataset.labels is not None:
        indices = sorted(indices, key=dataset.labels.__getitem__)
    bounds = [i * len(indices) // n for i in range(n + 1)] if n else []
    return sorted(indices[a + int(i * GOLDEN_RATIO % 1 * (b - a))] for i, (a, b) in enumerate(pairwise(bounds)))


def _slice_classes(dataset: Dataset, positions: slice) -> Dataset:
    if dataset.labels is None:
        raise OnnxquantError(
            f"{dataset.name}: --per-class needs labels; use one folder for each class, or a labels array"
        )
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(dataset.labels):
        by_class.setdefault(label, []).append(index)
    kept = sorted(index for members in by_class.values() for index in members[positions])
    if not kept:
        largest = max(len(members) for members in by_class.values())
        raise OnnxquantError(
            f"{dataset.name}: --per-class {_bound(positions.start)}:{_bound(positions.stop)} leaves no sample, "
            f"the largest class has {largest}; give other bounds"
        )
    return Subset(dataset, kept)


def _bound(bound: int | None) -> str:
    return "" if bound is None else str(bound)
