"""Geometry of the page's charts: arrays in, SVG paths and coordinates out. How they look is up to template and CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxquant.calibration.observers import ChannelMinMax, Log2Histogram
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.shift_log import ShiftLogQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer

Logarithmic: TypeAlias = Log2Quantizer | ShiftLogQuantizer

WIDTH, HEIGHT = 320, 72
"""A small chart's plot, in units of its viewBox."""

ENVELOPE_HEIGHT = 16
ENVELOPE_POINTS = 40
"""At most so many on each side of an envelope: a page stays small whatever the number of channels."""

WEIGHT_BINS = 80

DENSEST = 2.5
"""Units between the ticks of a comb, at least."""

PROFILE_WIDTH, PROFILE_HEIGHT = 1000, 180
PROFILE_CEILING = 80.0
"""dB. What agrees better is drawn there, so that one untouched layer doesn't flatten all others."""


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, drawn over `length` units."""

    low: float
    high: float
    length: float = WIDTH

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        span = self.high - self.low
        return (np.asarray(values, np.float64) - self.low) * (self.length / span if span > 0 else 0.0)


@dataclass(frozen=True)
class Comb:
    """A quantizer's levels as one dashed line from `start` to `end`, a tick for every `nth` level."""

    start: float
    end: float
    step: float
    nth: int
    levels: int

    @classmethod
    def of(cls, start: float, end: float, levels: int) -> Comb:
        """Levels at equal distances from `start` to `end`; ticks would blur where more than those drawn were."""
        step, nth = (end - start) / (levels - 1), 1
        while 0 < step * nth < DENSEST and nth < levels:
            nth *= 2
        return cls(start, end, step * nth, nth, levels)


@dataclass(frozen=True)
class WeightFigure:
    """Distribution of a weight on a linear axis from `low` to `high` (EfficientQuant, Figure 2).

    The comb holds the levels of the channel with the widest range; `envelope` outlines the ranges of all channels, and
    is empty where they share one.
    """

    histogram: str
    comb: Comb
    envelope: str
    zero: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float32], quantizer: UniformQuantizer) -> WeightFigure:
        first, last = quantizer.code_range
        zero_point, step = (
            np.atleast_1d(array).astype(np.float64) for array in (quantizer.zero_point, quantizer.scale)
        )
        lows, highs = (first - zero_point) * step, (last - zero_point) * step
        x = Scale(float(min(lows.min(), values.min())), float(max(highs.max(), values.max())))
        counts, _ = np.histogram(values, WEIGHT_BINS, (x.low, x.high))
        widest = int(np.argmax(step))
        return cls(
            histogram=histogram(counts),
            comb=Comb.of(float(x(lows[widest])), float(x(highs[widest])), last - first + 1),
            envelope=envelope(lows, highs, x) if len(step) > 1 else "",
            zero=float(x(0)),
            low=x.low,
            high=x.high,
        )


@dataclass(frozen=True)
class Log2Figure:
    """Distribution of attention probabilities on a log2 axis from 2^-octaves to 1 (EfficientQuant, Figure 3).

    Without samples there is no histogram; without a quantizer, no comb. `below` is the share of the values too small
    for any axis (see `Log2Histogram`).
    """

    octaves: int
    histogram: str
    values: int
    below: float
    comb: Comb | None

    @classmethod
    def of(cls, octaves: int, seen: Log2Histogram | None, quantizer: Logarithmic | None) -> Log2Figure:
        comb = None
        if quantizer is not None:
            levels = np.log2(_levels(quantizer))
            shown = levels[levels >= -octaves]
            if shown.size:
                start, end = Scale(-octaves, 0)(shown[[0, -1]])
                comb = Comb.of(float(start), float(end), len(shown))
        if seen is None:
            return cls(octaves, "", 0, 0.0, comb)
        values = int(seen.counts.sum()) + seen.below
        return cls(octaves, histogram(seen.counts[-4 * octaves :]), values, seen.below / max(values, 1), comb)


def _levels(quantizer: Logarithmic) -> NDArray[np.float32]:
    """What its codes stand for, from the smallest to the largest; 0, which no logarithmic axis shows, left out."""
    first, last = quantizer.code_range
    values = np.sort(quantizer.dequantize(np.arange(first, last + 1, dtype=np.float32)))
    return values[values > 0]


def octaves_needed(seen: Log2Histogram | None, quantizer: Logarithmic | None) -> int:
    """The octaves below 1 that show all values and levels: a multiple of four, at most what the histogram has."""
    needed = 0.0
    if quantizer is not None:
        needed = -math.log2(_levels(quantizer)[0])
    if seen is not None:
        occupied = np.flatnonzero(seen.counts)
        smallest = occupied[0] if len(occupied) and not seen.below else 0
        needed = max(needed, (seen.BINS - smallest) / 4)
    return int(np.clip(4 * math.ceil(needed / 4), 4, Log2Histogram.OCTAVES))


@dataclass(frozen=True)
class RangeFigure:
    """Smallest and largest value of every channel, on an axis from `low` to `high` that holds 0.

    `ratio` is the widest range over the median one: what a scale for all channels would cost most of them.
    """

    path: str
    stroke: float
    channels: int
    zero: float
    low: float
    high: float
    ratio: float

    @classmethod
    def of(cls, low: NDArray[np.float32], high: NDArray[np.float32]) -> RangeFigure:
        y = Scale(min(float(low.min()), 0.0), max(float(high.max()), 0.0), HEIGHT)
        median = float(np.median(high - low))
        return cls(
            path=spans(low, high, y),
            stroke=min(6.0, 0.72 * WIDTH / len(low)),
            channels=len(low),
            zero=float(HEIGHT - y(0)),
            low=y.low,
            high=y.high,
            ratio=float((high - low).max()) / median if median > 0 else math.inf,
        )

    @classmethod
    def of_observed(cls, seen: ChannelMinMax) -> RangeFigure:
        return cls.of(seen.minimum, seen.maximum)


@dataclass(frozen=True)
class ProfileFigure:
    """A value in dB for every layer in the order of the network: a path of dots for each of several kinds.

    `grid` has, for the round values of the axis, how far from the top they lie, in per cent.
    """

    dots: dict[str, str]
    grid: dict[int, float]

    @classmethod
    def of(cls, layers: Iterable[tuple[str, float]]) -> ProfileFigure:
        """Of the kind and value of each layer; there must be one."""
        kinds, values = zip(*layers, strict=True)
        clipped = np.clip(values, -PROFILE_CEILING, PROFILE_CEILING)
        y = Scale(
            min(0, math.floor(clipped.min() / 10) * 10), max(10, math.ceil(clipped.max() / 10) * 10), PROFILE_HEIGHT
        )
        x = Scale(-1, len(kinds), PROFILE_WIDTH)
        points = list(zip(x(np.arange(len(kinds))), PROFILE_HEIGHT - y(clipped), strict=True))
        step = 20 if y.high - y.low > 60 else 10
        levels = range(math.ceil(y.low / step) * step, int(y.high) + 1, step)
        return cls(
            {
                kind: dots(point for of, point in zip(kinds, points, strict=True) if of == kind)
                for kind in dict.fromkeys(kinds)
            },
            {level: 100 - 100 * float(y(level)) / PROFILE_HEIGHT for level in levels},
        )


def histogram(counts: NDArray[np.integer]) -> str:
    """Path of a filled histogram. What occurs at all is at least a hair high: tails matter here."""
    shares = counts / max(int(counts.max(initial=0)), 1)
    tops = HEIGHT * (1 - np.where(counts > 0, np.maximum(shares, 0.012), 0))
    path, previous = f"M0 {HEIGHT}", None
    for position, top in enumerate(tops):
        if top != previous:
            path += f"H{position * WIDTH / len(tops):.1f}V{top:.1f}"
            previous = top
    return f"{path}H{WIDTH}V{HEIGHT}Z"


def spans(low: NDArray[np.floating], high: NDArray[np.floating], y: Scale) -> str:
    """Path of one vertical line a channel, from its smallest value to its largest."""
    centres = (np.arange(len(low)) + 0.5) * (WIDTH / len(low))
    return "".join(
        f"M{x:.1f} {y.length - a:.1f}V{y.length - b - 0.3:.1f}"  # a channel of one value is still drawn
        for x, a, b in zip(centres, y(low), y(high), strict=True)
    )


def envelope(low: NDArray[np.floating], high: NDArray[np.floating], x: Scale) -> str:
    """Path around channels' ranges that lie below each other, from the narrowest to the widest."""
    order = np.argsort(high - low, kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(len(order), ENVELOPE_POINTS)).astype(int)]
    rows = np.linspace(0, ENVELOPE_HEIGHT, len(order))
    left, right = (
        [f"{a:.1f} {row:.1f}" for a, row in zip(x(bound[order]), rows, strict=True)] for bound in (low, high)
    )
    return f"M{'L'.join(left + right[::-1])}Z"


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Path of lines without length, which round caps turn into dots."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
