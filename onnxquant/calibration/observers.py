"""Observers: statistics of a tensor, gathered in one streaming pass.

An observer names the ONNX operators that reduce the tensor inside the graph, so that a few numbers leave ONNX Runtime
instead of the activation, and adds up what they return. Its memory does not depend on the number of samples, and its
result does not depend on how they were batched. What it saw can be kept as JSON and comes back exact to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self


class Observer:
    """Base class.

    The attributes of an observer are its state: numbers, and arrays that keep their dtype and number of axes. It can be
    made without arguments.
    """

    reductions: ClassVar[dict[str, dict[str, Any]]]
    """Operator -> attributes; each takes the tensor alone and its output goes to `update`."""

    def update(self, *reduced: NDArray[Any]) -> None:
        """Take in one batch: one array a reduction."""
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


class MinMax(Observer):
    """Smallest and largest value of the whole tensor."""

    # ReduceMin and ReduceMax may pass over a NaN, depending on where it stands; the mean never does.
    reductions: ClassVar[dict[str, dict[str, Any]]] = {
        "ReduceMin": {"keepdims": 0},
        "ReduceMax": {"keepdims": 0},
        "ReduceMean": {"keepdims": 0},
    }

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

    reductions: ClassVar[dict[str, dict[str, Any]]] = {"GlobalAveragePool": {}}

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

    reductions: ClassVar[dict[str, dict[str, Any]]] = {"Identity": {}}

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
    """Smallest and largest value of every channel, for looking at; whole activations leave the graph for it.

    Args:
        axis: the channels' axis; counts from the end where negative.
    """

    reductions: ClassVar[dict[str, dict[str, Any]]] = {"Identity": {}}

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.minimum: NDArray[np.float32] = np.full(1, np.inf, np.float32)
        self.maximum: NDArray[np.float32] = np.full(1, -np.inf, np.float32)

    def update(self, *reduced: NDArray[Any]) -> None:
        rows = np.moveaxis(reduced[0], self.axis, 0).reshape(reduced[0].shape[self.axis], -1)
        self.minimum = np.minimum(self.minimum, rows.min(axis=1).astype(np.float32))
        self.maximum = np.maximum(self.maximum, rows.max(axis=1).astype(np.float32))
