"""Ways to choose the range that a quantizer covers from what a `Histogram` saw.

A wide range clips nothing and rounds coarsely, a narrow one the other way round. Each bin's values are taken as spread
evenly over it. Every range includes 0, as those of quantizers do.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np

from onnxquant.calibration.histogram import Histogram
from onnxquant.calibration.range_errors import divergences, squared_errors

RangeMethod: TypeAlias = Literal["minmax", "percentile", "entropy", "mse", "moving_average"]

RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)

DEFAULT_PERCENTILE = 99.99

OCTAVES = 8
"""How far below the whole range the search for the best one goes, in powers of two; a histogram shows no more."""

CANDIDATES = 128
"""Ranges that entropy compares."""


def find_range(
    seen: Histogram, method: RangeMethod, *, bits: int, symmetric: bool, percentile: float = DEFAULT_PERCENTILE
) -> tuple[float, float]:
    """Lowest and highest value of the range, for `UniformQuantizer.from_range`.

    minmax
        all values.
    percentile
        `percentile` per cent of the values; half of the rest is clipped at each end.
    entropy
        the values up to the magnitude where the distribution of what is quantized is closest to that of the values, by
        Kullback-Leibler divergence (Migacz, 8-bit inference with TensorRT, 2017).
    mse
        where the squared error of rounding and clipping together is least.
    moving_average
        the mean over the samples of their smallest and of their largest value.

    Args:
        seen: what was observed of the tensor.
        method: see above.
        bits: 2 to 8.
        symmetric: whether the codes are signed, with 0 at zero-point 0; `from_range` widens the range accordingly.
        percentile: above 0, at most 100.
    """
    if method == "percentile":
        low, high = _percentile(seen, percentile)
    elif method == "moving_average":
        low, high = seen.low_total / seen.samples, seen.high_total / seen.samples
    elif method == "minmax" or not max(-seen.minimum, seen.maximum) or len(seen.counts) == 1:
        low, high = seen.minimum, seen.maximum
    elif method == "mse":
        low, high = _least_squares(seen, bits, symmetric)
    else:
        low, high = _least_divergence(seen, bits, symmetric)
    return min(low, 0.0), max(high, 0.0)


def _percentile(seen: Histogram, percentile: float) -> tuple[float, float]:
    cumulative = np.concatenate([[0], seen.counts.cumsum()]) / seen.counts.sum()
    tail = (1 - percentile / 100) / 2
    # Where several bins are empty the outermost one that holds no more than the tail is meant, at either end.
    low = seen.edges[max(int(np.searchsorted(cumulative, tail, "right")) - 1, 0)]
    high = seen.edges[int(np.searchsorted(cumulative, 1 - tail, "left"))]
    return max(float(low), seen.minimum), min(float(high), seen.maximum)


def _least_squares(seen: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """The best step of some in geometric distances, then of those between its neighbours; each with all zero-points."""
    levels = 2**bits - 1
    if symmetric:
        widest, lowest = max(-seen.minimum, seen.maximum) / (levels // 2), np.array([-(2 ** (bits - 1))])
    else:
        widest, lowest = (max(seen.maximum, 0.0) - min(seen.minimum, 0.0)) / levels, -np.arange(levels + 1)
    coarse = widest * 2.0 ** -np.arange(0, OCTAVES, 0.5)
    best = int(squared_errors(seen, coarse, lowest, levels).min(axis=1).argmin())
    fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, len(coarse) - 1)], 25)
    errors = squared_errors(seen, fine, lowest, levels)
    at, zero = divmod(int(errors.argmin()), len(lowest))
    step = float(fine[at])
    if symmetric:  # [-m, m] has as many codes on either side; the one below them comes on its own
        return -(levels // 2) * step, (levels // 2) * step
    return float(lowest[zero]) * step, float(lowest[zero] + levels) * step


def _least_divergence(seen: Histogram, bits: int, symmetric: bool) -> tuple[float, float]:
    """The best of `CANDIDATES` magnitudes to cut both ends at; each leaves a bin or more for every code."""
    largest = max(-seen.minimum, seen.maximum)
    codes = 2**bits - 1
    narrowest = min(float(np.ldexp(codes, seen.exponent)), largest)
    magnitudes = np.linspace(largest, narrowest, CANDIDATES)
    bottoms = -magnitudes if symmetric else np.maximum(-magnitudes, min(seen.minimum, 0.0))
    tops = magnitudes if symmetric else np.minimum(magnitudes, max(seen.maximum, 0.0))
    best = int(divergences(seen, bottoms, tops, codes).argmin())  # the widest of equally good ones
    return float(bottoms[best]), float(tops[best])
