"""Rounding that keeps what a kernel adds up to.

Nearest rounding moves a kernel's sum by up to a step or two. Where the sum is nearly zero, as in the edge-detecting
depthwise convolutions of trained hybrids, that error is multiplied by the mean of every pixel and can carry most of a
model's loss. Here, per output channel, the roundings closest to a tie are flipped until the (weighted) sum is as close
to the original as whole flips bring it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def sum_preserving(
    scaled: NDArray[np.floating], scale: ArrayLike, code_range: ArrayLike, tap_mean: ArrayLike = 1.0
) -> NDArray[np.float64]:
    """Round so that Σ m Δ (rounded - scaled) over each row is as small as few flips can make it.

    Args:
        scaled: weights divided by their scale, x / Δ; shape (outputs, taps), one row a kernel.
        scale: Δ, broadcasts to `scaled`.
        code_range: smallest and largest whole number allowed, (2, ...) each broadcasting to `scaled`.
        tap_mean: m, the mean of the input that each weight is multiplied by, broadcasts to `scaled`. The default, all
            ones, keeps the plain sum.

    Returns:
        float64 whole numbers, shape (outputs, taps), each at most one off the nearest.
    """
    scaled = scaled.astype(np.float64)
    low, high = np.asarray(code_range)
    nearest = np.clip(np.rint(scaled), low, high)
    rounding = nearest - scaled
    flipped = nearest - np.where(rounding > 0, 1, -1)
    value = np.broadcast_to(np.asarray(scale, np.float64) * np.asarray(tap_mean), scaled.shape)
    error = (value * rounding).sum(axis=1, keepdims=True)
    gain = value * (nearest - flipped) * np.sign(error)  # by how much a flip brings the error towards zero
    useful = (gain > 0) & (flipped >= low) & (flipped <= high)
    # Squared rounding error that a flip adds, per unit of gain: ties cost nothing and go first.
    cost = np.where(useful, (1 - 2 * np.abs(rounding)) / np.where(useful, gain, 1), np.inf)
    order = np.argsort(cost, axis=1, kind="stable")
    corrected = np.cumsum(np.take_along_axis(np.where(useful, gain, 0), order, axis=1), axis=1)
    remaining = np.abs(np.abs(error) - np.concatenate([np.zeros_like(error), corrected], axis=1))
    flips = np.argmin(remaining, axis=1)[:, None]
    chosen = np.zeros_like(useful)
    np.put_along_axis(chosen, order, np.arange(order.shape[1]) < flips, axis=1)
    return np.where(chosen & useful, flipped, nearest)
