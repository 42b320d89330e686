"""Observers: statistics of a tensor, gathered in one streaming pass.

An observer brings an ONNX function that reduces the tensor inside the graph, so that a few numbers leave ONNX Runtime
instead of the activation, and adds up what it returns. Its memory does not depend on the number of samples, and its
result does not depend on how they were batched. What it saw can be kept as JSON and comes back exact to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self


PER_SAMPLE = """
            size = Size (x)
            rest = Mod (size, samples)
            uneven = Cast <to = 9> (rest)
            whole = Constant <value_ints = [1, -1]> ()
            shape = Where (uneven, whole, rows)
"""
"""The part of a reduction that computes `shape`, which gives each sample of a batch a row; what can't be divided among
the samples is one row."""


class Observer:
    """Base class.

    The attributes of an observer are its state: numbers, and arrays that keep their dtype and number of axes. It can be
    made without arguments.
    """

    reduction: ClassVar[str]
    """Inputs, outputs and body of the function, as ONNX text of opset 13.

    It may take the tensor `x`, the number of samples that were put together, `samples` (int64, [n]), the shape that
    gives each of them a row, `rows` (int64, [n, -1]), and its `constants`. Its outputs go to `update`; where axis 0 of
    one follows the samples, those that only fill up the batch are cut off.
    """

    constants: ClassVar[Mapping[str, NDArray[Any]]] = {}
    """Arrays that the function takes, by the name of the input."""

    def update(self, *reduced: NDArray[Any]) -> None:
        """Take in one batch: one array an output of the function."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What it saw, for JSON: attribute -> number or nested list of numbers."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """An observer that saw what the one did that `state` is of.

        Raises:
            ValueError: `state` is none of this type of observer.
        """
        observer = cls()
        attributes = dict(vars(observer))
        if state.keys() != attributes.keys():
            raise ValueError(f"has {', '.join(sorted(state))} instead of {', '.join(sorted(attributes))}")
        for name, fresh in attributes.items():
            given, like = np.asarray(state[name]), np.asarray(fresh)
            if given.dtype.kind not in "iuf" or given.ndim != like.ndim:
                raise ValueError(f"has a {name} that is not {'an array of numbers' if like.ndim else 'a number'}")
            with np.errstate(over="ignore", invalid="ignore"):
                value = given.astype(like.dtype)
            if not np.isfinite(value).all() or (value.dtype.kind in "iu" and (value != given).any()):
                raise ValueError(f"has a {name} that does not fit {like.dtype}")
            setattr(observer, name, value if isinstance(fresh, np.ndarray) else type(fresh)(value))
        return observer


AnyObserver = TypeVar("AnyObserver", bound=Observer)


class MinMax(Observer):
    """Smallest and largest value of the whole tensor."""

    # ReduceMin and ReduceMax may pass over a NaN, depending on where it stands; the mean never does.
    reduction: ClassVar[str] = """
        (x) => (low, high, mean) {
            low = ReduceMin <keepdims = 0> (x)
            high = ReduceMax <keepdims = 0> (x)
            mean = ReduceMean <keepdims = 0> (x)
        }
    """

    def __init__(self) -> None:
        self.minimum, self.maximum = float("inf"), float("-inf")

    def update(self, *reduced: NDArray[Any]) -> None:
        self.minimum = min(self.minimum, float(reduced[0]))
        self.maximum = max(self.maximum, float(reduced[1]))


class ChannelMean(Observer):
    """Mean of every channel of a (N, C, spatial...) tensor.

    Attributes:
        total: sum of the samples' means, (C,).
        count: samples.
    """

    reduction: ClassVar[str] = "(x) => (mean) { mean = GlobalAveragePool (x) }"

    def __init__(self) -> None:
        self.total: NDArray[np.float64] = np.zeros(0)
        self.count = 0

    def update(self, *reduced: NDArray[Any]) -> None:
        samples = reduced[0].reshape(reduced[0].shape[:2]).astype(np.float64)
        self.total = samples.sum(axis=0) + (self.total if self.count else 0)
        self.count += len(samples)

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32, shape (C,)."""
        return (self.total / max(self.count, 1)).astype(np.float32)


class Log2Histogram(Observer):
    """Histogram over log2 of values in [0, 1], for looking at; whole activations leave the graph for it.

    Attributes:
        counts: values in each of `BINS` equal bins from 2^-`OCTAVES` to 1; a value above 1 counts in the last.
        below: values under the first bin, zeros included.
    """

    OCTAVES: ClassVar[int] = 24
    BINS: ClassVar[int] = 4 * OCTAVES

    reduction: ClassVar[str] = "(x) => (values) { values = Identity (x) }"

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(self.BINS, np.int64)
        self.below = 0

    def update(self, *reduced: NDArray[Any]) -> None:
        values = reduced[0].astype(np.float32)
        values = values[values >= 2.0**-self.OCTAVES]
        self.below += reduced[0].size - values.size
        counts, _ = np.histogram(np.log2(np.minimum(values, 1)), self.BINS, (-self.OCTAVES, 0))
        self.counts += counts


class ChannelMinMax(Observer):
    """Smallest and largest value and mean of every channel of a (N, C, spatial...) tensor.

    Attributes:
        minimum: float32, (C,).
        maximum: float32, (C,).
        total: sum of the samples' means, (C,).
        count: samples.
    """

    reduction: ClassVar[str] = """
        (x) => (low, high, mean) {
            shape = Constant <value_ints = [0, 0, -1]> ()
            flat = Reshape (x, shape)
            low = ReduceMin <axes = [2], keepdims = 0> (flat)
            high = ReduceMax <axes = [2], keepdims = 0> (flat)
            mean = ReduceMean <axes = [2], keepdims = 0> (flat)
        }
    """

    def __init__(self) -> None:
        self.minimum: NDArray[np.float32] = np.full(1, np.inf, np.float32)
        self.maximum: NDArray[np.float32] = np.full(1, -np.inf, np.float32)
        self.total: NDArray[np.float64] = np.zeros(1)
        self.count = 0

    def update(self, *reduced: NDArray[Any]) -> None:
        low, high, mean = reduced
        self.minimum = np.minimum(self.minimum, low.min(axis=0).astype(np.float32))
        self.maximum = np.maximum(self.maximum, high.max(axis=0).astype(np.float32))
        for sample in mean.astype(np.float64):  # one by one: the sum must not depend on the batches
            self.total = self.total + sample
        self.count += len(mean)

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32, shape (C,)."""
        return (self.total / max(self.count, 1)).astype(np.float32)


class LastAxisMinMax(ChannelMinMax):
    """Smallest and largest value and mean of every channel of a (N, ..., C) tensor, as transformers have them."""

    reduction: ClassVar[str] = f"""
        (x, rows, samples) => (low, high, mean) {{
            {PER_SAMPLE}
            axes = Shape (x)
            last = Constant <value_ints = [-1]> ()
            channels = Gather (axes, last)
            tokens = Concat <axis = 0> (shape, channels)
            flat = Reshape (x, tokens)
            low = ReduceMin <axes = [1], keepdims = 0> (flat)
            high = ReduceMax <axes = [1], keepdims = 0> (flat)
            mean = ReduceMean <axes = [1], keepdims = 0> (flat)
        }}
    """
