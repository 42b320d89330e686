"""A streaming histogram of the magnitudes of each token's values, from which outliers and scales by token follow.

A bin holds the magnitudes that agree in the exponent and the first bits of the significand, so bins grow with the
values in them and the same ones serve all tokens. They reach some octaves down from the largest magnitude of all; what
is below them counts as 0. When a larger one comes they move up: what is below then was so, or in the lowest bins,
before. The result is exact, and depends on neither the batches nor their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.observers import Observer
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.quantizers.uniform import SMALLEST_SCALE

if TYPE_CHECKING:
    from typing_extensions import Self

FRACTION = 5
"""Bits of the significand that tell bins apart: 32 bins an octave."""

DROPPED = 23 - FRACTION
"""Bits of a float32 that don't."""

INFINITY = 0x7F800000 >> DROPPED
"""What those of infinity are; no value has them."""

FINEST, PER_OCTAVE = 8, 16
"""Scales that are tried: how far below the widest, in octaves, and how many an octave."""

POINTS = 8
"""Values that stand for those of a bin."""


class TokenHistogram(Observer):
    """Histogram of the magnitudes at each place between the first and the last axis of a (N, tokens..., C) tensor.

    Whole activations leave the graph for it.

    Attributes:
        counts: values of each token in each bin, (tokens, `BINS`); the first bin holds all below the second.
        end: what the bits of the first magnitude above the last bin are, as a whole number.
    """

    BINS: ClassVar[int] = 10 * 2**FRACTION + 1

    reduction: ClassVar[str] = "(x) => (values) { values = Identity (x) }"

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((0, self.BINS), np.int64)
        self.end = 0

    def update(self, *reduced: NDArray[Any]) -> None:
        values = np.abs(reduced[0].astype(np.float32))
        values = values.reshape(len(values), math.prod(values.shape[1:-1]), values.shape[-1])
        places = values.view(np.int32) >> DROPPED  # as whole numbers, positive floats are in the same order
        self._cover(int(places.max()) + 1, values.shape[1])
        bins = np.maximum(places - (self.end - self.BINS), 0) + np.arange(values.shape[1])[:, None] * self.BINS
        self.counts += np.bincount(bins.ravel(), minlength=self.counts.size).reshape(self.counts.shape)

    def _cover(self, end: int, tokens: int) -> None:
        """Make room for magnitudes below `end`, and for so many tokens."""
        self.counts = np.pad(self.counts, ((0, max(tokens - len(self.counts), 0)), (0, 0)))
        if (up := end - self.end) > 0:
            up, self.end = min(up, self.BINS - 1), end
            lowest = self.counts[:, : up + 1].sum(axis=1, keepdims=True)
            self.counts = np.hstack([lowest, np.pad(self.counts[:, up + 1 :], ((0, 0), (0, up)))])

    @property
    def edges(self) -> NDArray[np.float32]:
        """Where the bins begin, and where the last one ends: (bins + 1,)."""
        codes = np.arange(self.end - self.BINS, self.end + 1, dtype=np.int32).clip(0, INFINITY)
        codes[0] = 0
        return np.minimum((codes << DROPPED).view(np.float32), np.finfo(np.float32).max)

    def threshold(self, share: float) -> float | None:
        """The smallest edge of a bin that at most `share` of all values reach; None where none of the values may."""
        reaching = self.counts.sum(axis=0)[::-1].cumsum()[::-1]
        few = np.flatnonzero(reaching <= share * self.counts.sum())
        return float(self.edges[few[0]]) if few.size else None

    def reaches(self, magnitude: float) -> bool:
        """Whether any value's bin does."""
        return bool(self.counts[:, self.edges[1:] > magnitude].any())

    def scales(self, bits: int, threshold: float | None) -> NDArray[np.float32]:
        """For each token the scale of least squared error of what is below the threshold: (tokens,).

        Args:
            bits: 2 to 8.
            threshold: of `PerTokenQuantizer`.
        """
        edges, limit = self.edges.astype(np.float64), math.inf if threshold is None else threshold
        inside = np.flatnonzero(edges[:-1] < limit)
        places = (np.arange(POINTS) + 0.5) / POINTS
        values = edges[inside, None] + np.diff(edges)[inside, None] * places
        values[0] = 0
        values = np.minimum(values, limit).astype(np.float32)
        signed = np.stack([values, -values], axis=-1)  # below 0 there is one code more
        filled = inside[self.counts[:, inside].any(axis=0)]
        widest = values[filled].max(initial=0) / (2 ** (bits - 1) - 1)
        steps = widest * 2.0 ** -(np.arange(FINEST * PER_OCTAVE) / PER_OCTAVE)
        largest = np.finfo(np.float32).max / 2**bits  # whose codes stand for finite values
        steps = steps.clip(SMALLEST_SCALE["float32"], largest).astype(np.float32)
        trial = PerTokenQuantizer(bits, steps)  # each of its tokens is a scale to be tried
        quantized = trial.fake_quantize(np.broadcast_to(signed.ravel(), (1, len(steps), signed.size)))
        errors = (quantized[0] - signed.ravel().astype(np.float64)) ** 2
        errors = errors.reshape(len(steps), len(inside), -1).mean(axis=-1)
        best: NDArray[np.float32] = steps[(self.counts[:, inside] @ errors.T).argmin(axis=1)]
        return best

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        seen = super().from_state(state)
        if seen.counts.shape[1] != cls.BINS or (seen.counts < 0).any() or not seen.counts[:, -1].any():
            raise ValueError(f"has counts that are not {cls.BINS} numbers of values a token")
        if not 0 < seen.end <= INFINITY:
            raise ValueError("has an end that no magnitude is below")
        return seen
