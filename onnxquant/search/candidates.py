"""The quantizers that a search tries: a range times a ratio, coarse steps first and fine ones around the best."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Candidate = TypeVar("Candidate")


def best_ratio(
    make: Callable[[NDArray[np.float64]], Candidate],
    errors: Callable[[Candidate], Tensor],
    channels: int,
    candidates: int,
    span: tuple[float, float],
) -> tuple[Candidate, float]:
    """The candidate with the least error.

    Args:
        make: from ratios (channels,) to a candidate.
        errors: its costs (channels,).
        channels: how many ratios are chosen independently of each other.
        candidates: as many ratios spread over `span` would be: a fifth of them is tried there, another fifth between
            the neighbours of the best.
        span: smallest and largest ratio.

    Returns:
        The candidate, and its error summed over the channels.
    """
    steps = max(2, round(candidates / 5))
    coarse = np.linspace(*span, steps)
    best, least = _least([np.full(channels, ratio) for ratio in coarse], make, errors)
    step = (span[1] - span[0]) / (steps - 1)
    offsets = np.linspace(-step, step, steps + 2)[1:-1]
    finer, less = _least([np.maximum(best + offset, span[0]) for offset in offsets], make, errors)
    chosen = np.where(less < least, finer, best)
    return make(chosen), float(np.minimum(less, least).sum())


def _least(
    ratios: list[NDArray[np.float64]],
    make: Callable[[NDArray[np.float64]], Candidate],
    errors: Callable[[Candidate], Tensor],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each channel the ratio with the least error, and that error."""
    table = torch.stack([errors(make(ratio)) for ratio in ratios]).double().cpu().numpy()
    best = table.argmin(axis=0)
    channels = np.arange(table.shape[1])
    return np.stack(ratios)[best, channels], table[best, channels]
