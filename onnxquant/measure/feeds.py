"""What models are run on to be timed: random values, or the first samples of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import Dataset, Feed, InputSpec
from onnxquant.errors import OnnxquantError
from onnxquant.shapes import default_shape, fitting_shape


def random_feed(
    specs: Sequence[InputSpec],
    name: str,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    image: tuple[int, ...] = (),
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """Seeded random inputs: floats from a normal distribution, bytes over their range, other integers 0 or 1.

    Args:
        specs: the model's inputs.
        name: what messages call it.
        batch: size of a dynamic first axis.
        shapes: of inputs, by name.
        image: what dynamic axes after the first have where `shapes` doesn't say; see `onnxquant.shapes.image_shape`.
        seed: of the values; models with the same inputs are given the same.

    Raises:
        OnnxquantError: the size of an axis is unknown, a shape doesn't fit, or an input is neither numbers nor bools.
    """
    rng = np.random.default_rng(seed)
    feed: dict[str, NDArray[Any]] = {}
    for spec in specs:
        given = (shapes or {}).get(spec.name)
        shape = default_shape(spec, name, batch, image) if given is None else fitting_shape(spec, given, name)
        feed[spec.name] = _random(rng, shape, spec, name)
    return feed


def data_feed(dataset: Dataset, specs: Sequence[InputSpec], batch: int = 1) -> Feed:
    """The first `batch` samples of `dataset` as one run's inputs, or as many as a fixed batch axis says.

    Raises:
        OnnxquantError: there are not so many.
    """
    first = next(batches(dataset, batch, specs), None)
    fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in specs)
    if first is None or (not fixed and batch_size(first.feeds) < batch):
        raise OnnxquantError(f"{dataset.name}: has {len(dataset)} samples, too few for --batch {batch}")
    return first.feeds


def batch_size(feed: Feed) -> int:
    """Samples in one run."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def _random(rng: np.random.Generator, shape: tuple[int, ...], spec: InputSpec, name: str) -> NDArray[Any]:
    if np.issubdtype(spec.dtype, np.floating):
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype in (np.uint8, np.int8):
        return rng.integers(0, 256, shape).astype(spec.dtype)
    if np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(spec.dtype)  # any vocabulary and any mask has these
    raise OnnxquantError(f"{name}: input {spec} can't be filled with random values; give some with --data")
