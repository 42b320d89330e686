"""A streaming histogram of a tensor, from which every way to choose its range can be followed.

Bins are half-open intervals [i w, (i + 1) w) whose width w is a power of two. When the range outgrows them, pairs of
neighbours are merged until it fits: each value counts in the bin it would have had in the first place, so the result is
exact, and depends on neither the batches nor their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.observers import PER_SAMPLE, Observer

if TYPE_CHECKING:
    from typing_extensions import Self

GOLDEN_RATIO = (5**0.5 - 1) / 2

SUBDIVISION = 2**16
"""Places inside a stretch of values."""

NARROWEST = -1000
"""Exponent of the width of a bin that holds zeros only."""

PRECISION = 24
"""Bits of float32's significand: bins are not narrower than that lets values near them differ."""


def _places(count: int) -> NDArray[np.int64]:
    """One place in each of `count` equal stretches, in units of a stretch / `SUBDIVISION`.

    It is not the same place in every stretch: that could be one column of an image, or one channel of a token.
    """
    stretch = np.arange(count)
    return stretch * SUBDIVISION + (stretch * GOLDEN_RATIO % 1 * SUBDIVISION).astype(np.int64)


class Histogram(Observer):
    """Histogram of the whole tensor, with its exact smallest and largest value and their means over the samples.

    Of each sample at most `VALUES` values are counted, spread evenly over it, always at the same places; those of a
    smaller tensor all are.

    Attributes:
        counts: values in each bin, (bins,), of which there are `BINS` at most; the first holds the smallest value, the
            last the largest.
        first: the first bin begins at ``first * 2**exponent``.
        exponent: a bin is ``2**exponent`` wide.
        minimum: the smallest value of all, counted or not.
        maximum: the largest.
        low_total: sum of the samples' smallest values.
        high_total: sum of the samples' largest values.
        samples: number of samples.
    """

    VALUES: ClassVar[int] = 4096
    BINS: ClassVar[int] = 4096

    # The mean is for NaNs, as in MinMax. The places of n values out of a row of `width` are those of n stretches.
    reduction: ClassVar[str] = f"""
        (x, rows, samples, places) => (low, high, mean, values) {{
            {PER_SAMPLE}
            flat = Reshape (x, shape)
            low = ReduceMin <axes = [1], keepdims = 0> (flat)
            high = ReduceMax <axes = [1], keepdims = 0> (flat)
            mean = ReduceMean <axes = [1], keepdims = 0> (flat)

            one = Constant <value_ints = [1]> ()
            flat_shape = Shape (flat)
            width = Gather (flat_shape, one)
            most = Shape (places)
            n = Min (width, most)
            zero = Constant <value_ints = [0]> ()
            stretched = Slice (places, zero, n)
            scaled = Mul (stretched, width)
            unit = Constant <value_ints = [{SUBDIVISION}]> ()
            units = Mul (n, unit)
            index = Div (scaled, units)
            values = Gather <axis = 1> (flat, index)
        }}
    """
    constants: ClassVar[Mapping[str, NDArray[Any]]] = {"places": _places(VALUES)}

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self.first, self.exponent = 0, NARROWEST
        self.minimum, self.maximum = float("inf"), float("-inf")
        self.low_total, self.high_total, self.samples = 0.0, 0.0, 0

    def update(self, *reduced: NDArray[Any]) -> None:
        low, high, _, values = (array.astype(np.float64) for array in reduced)
        for smallest, largest in zip(low.tolist(), high.tolist(), strict=True):  # the sum must not depend on batches
            self.low_total += smallest
            self.high_total += largest
        self.samples += len(low)
        self._cover(min(self.minimum, float(low.min())), max(self.maximum, float(high.max())))
        bins = self._bin(values).astype(np.int64) - self.first
        self.counts += np.bincount(bins.ravel(), minlength=len(self.counts))

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where the bins begin, and where the last one ends: (bins + 1,)."""
        return np.ldexp(self.first + np.arange(len(self.counts) + 1.0), self.exponent)

    def _bin(self, values: Any) -> Any:
        """The bin of each value, as float64 whole numbers; a product with a power of two is exact."""
        return np.floor(values * math.ldexp(1.0, -self.exponent))

    def _cover(self, minimum: float, maximum: float) -> None:
        """Make the bins those of the range [minimum, maximum], which includes all that was counted."""
        if (minimum, maximum) == (self.minimum, self.maximum):
            return
        before, old = self.exponent, self.first + np.arange(len(self.counts))
        self.minimum, self.maximum = minimum, maximum
        if largest := max(-minimum, maximum):
            self.exponent = max(before, math.frexp(largest)[1] - PRECISION)
        while self._bin(maximum) - self._bin(minimum) >= self.BINS:
            self.exponent += 1
        self.first = int(self._bin(minimum))
        counts = np.zeros(int(self._bin(maximum)) - self.first + 1, np.int64)
        # A whole number shifted right is that of the bin twice as wide, below 0 too.
        np.add.at(counts, (old >> min(self.exponent - before, 63)) - self.first, self.counts)
        self.counts = counts

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        seen = super().from_state(state)
        if not (0 < len(seen.counts) <= cls.BINS and (seen.counts >= 0).all() and seen.counts.any()):
            raise ValueError(f"has counts that are not 1 to {cls.BINS} numbers of values")
        bounds = seen._bin(np.array([seen.minimum, seen.maximum])) - seen.first if seen.exponent >= NARROWEST else ()
        if seen.samples < 1 or list(bounds) != [0, len(seen.counts) - 1]:
            raise ValueError("has bins that are not those of its minimum and maximum")
        return seen
