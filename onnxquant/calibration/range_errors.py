"""What uniform quantizers of different ranges cost a tensor, by its histogram: squared error and divergence.

Each bin's values are taken as spread evenly over it, so that the errors are integrals with closed forms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.histogram import Histogram

Floats = NDArray[np.float64]


def squared_errors(seen: Histogram, steps: Floats, lowest: NDArray[np.int64], levels: int) -> Floats:
    """Mean squared error of rounding and clipping together, for every step and every lowest value.

    Between L and H, the lowest and the highest value that has a code, x is rounded to a multiple r Δ of the step, and
    its squared error has the antiderivative r Δ³ / 12 + (x - r Δ)³ / 3. Outside it is (x - L)² or (x - H)².

    Args:
        seen: the histogram.
        steps: Δ, (S,).
        lowest: L / Δ, (Z,).
        levels: (H - L) / Δ.

    Returns:
        (S, Z), in squares of a bin's width.
    """
    unit = np.ldexp(1.0, seen.exponent)  # everything is counted in bins: their width is 1
    edges = seen.edges / unit
    density = seen.counts / seen.counts.sum()
    centres = edges[:-1] + 0.5
    step = steps[:, None] / unit
    mass, first, second = (_running(density * moment) for moment in (1, centres, centres**2 + 1 / 12))
    rounded = _rounded(edges, step)
    rounding = _running(density * np.diff(rounded, axis=1))

    def below(bound: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Sum over the values below `bound` of their 0th, 1st and 2nd power and of their rounding error."""
        bound = np.clip(bound, edges[0], edges[-1])
        at = np.minimum((bound - edges[0]).astype(np.int64), len(density) - 1)
        begin, share = edges[at], density[at]
        width = bound - begin
        centre = begin + width / 2
        rest = _rounded(bound, step) - np.take_along_axis(rounded, at, axis=1)
        return (
            mass[at] + share * width,
            first[at] + share * width * centre,
            second[at] + share * width * (centre**2 + width**2 / 12),
            np.take_along_axis(rounding, at, axis=1) + share * rest,
        )

    low = lowest * step
    high = low + levels * step
    low_mass, low_first, low_second, low_rounding = below(low)
    high_mass, high_first, high_second, high_rounding = below(high)
    clipped_below = low_second - 2 * low * low_first + low**2 * low_mass
    clipped_above = (second[-1] - high_second) - 2 * high * (first[-1] - high_first) + high**2 * (mass[-1] - high_mass)
    return np.asarray(clipped_below + clipped_above + high_rounding - low_rounding)


def divergences(seen: Histogram, bottoms: Floats, tops: Floats, codes: int) -> Floats:
    """Kullback-Leibler divergence of each range's quantized values from the values (Migacz, 2017).

    P is the histogram inside the range, with what lies outside added to the outermost bins. Q is the histogram inside,
    with each code's values spread evenly over those of its bins that P fills. With sums over codes and over bins

        KL(P || Q) = sum_bins P log P - sum_codes P_code log(Q_code / filled_code)

    The bin that holds 0 counts no more than its neighbours: 0 has a code of its own and is exact, however often an
    activation function makes it.

    Args:
        seen: the histogram.
        bottoms: where the ranges begin, (R,).
        tops: where they end, (R,).
        codes: number of intervals that a range is divided into; their bounds are moved to those of bins,
            outwards at the ends.

    Returns:
        (R,); infinite where Q lacks values that P has.
    """
    counts = seen.counts.copy()
    if 0 <= (zero := -seen.first) < len(counts):
        counts[zero] = min(counts[zero], max([*counts[zero - 1 : zero], *counts[zero + 1 : zero + 2], 1]))
    total = _running(counts)
    bounds = np.linspace(bottoms, tops, codes + 1, axis=1)
    places = np.ldexp(bounds, -seen.exponent) - seen.first
    at = np.rint(places)
    at[:, 0], at[:, -1] = np.floor(places[:, 0]), np.floor(places[:, -1]) + 1  # the ends themselves are inside
    at = np.clip(at, 0, len(counts)).astype(np.int64)
    rows, begin, last = np.arange(len(at)), at[:, 0], at[:, -1] - 1
    below, above = total[begin], total[-1] - total[last + 1]
    first, final = ((at[:, 1:] > edge[:, None]).argmax(axis=1) for edge in (begin, last))  # codes of the outermost bins
    begin = np.minimum(begin, len(counts) - 1)
    inside = np.diff(total[at], axis=1)
    filled = np.diff(_running((counts > 0).astype(np.int64))[at], axis=1)
    values = inside.copy()
    for code, edge, outside in ((first, begin, below), (final, last, above)):
        values[rows, code] += outside
        filled[rows, code] += (outside > 0) & (counts[edge] == 0)
    logs = _times_log(counts)
    running = _running(logs)
    p_log_p = running[last + 1] - running[begin] - logs[begin] - logs[last]
    p_log_p += _times_log(counts[begin] + below) + _times_log(counts[last] + above)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(inside / filled) - np.log(inside.sum(axis=1, keepdims=True))
        p_log_q = np.where(values > 0, values * log_q, 0).sum(axis=1)
    divergence = (p_log_p - p_log_q) / total[-1] - np.log(total[-1])
    return np.where((last > begin) & np.isfinite(divergence), divergence, np.inf)


def _rounded(x: Floats, step: Floats) -> Floats:
    """The antiderivative of the squared rounding error, 0 at 0: (S, ...) of x and a step (S, 1)."""
    code = np.rint(x / step)
    error = x - code * step
    return code * (step**3 / 12) + error * error * error / 3


def _times_log(x: NDArray[np.number]) -> Floats:
    """``x log x``, which is 0 at 0."""
    return x * np.log(np.maximum(x, 1))


def _running(values: NDArray[np.number]) -> Floats:
    """Sums of the first 0, 1, ... values on the last axis."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
