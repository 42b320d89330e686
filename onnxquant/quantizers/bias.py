"""Biases of integer layers as int32.

An integer kernel adds up codes of activation x weight in steps of input scale x weight scale; a bias in the same steps
is added as it is:

    q = round(b / (Δx Δw))        b̂ = q Δx Δw
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LIMIT = 2**31 - 1


def bias_codes(
    bias: NDArray[np.float32], read: NDArray[np.floating], weight: NDArray[np.floating]
) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
    """The codes of a layer's bias, and the step they are in.

    Args:
        bias: (M,).
        read: scale of what the layer reads: ().
        weight: scale of its weight: () or (M,).

    Returns:
        Codes (M,) and step, () or (M,); None where int32 or float32 can't hold them.
    """
    step = np.asarray(read * weight, np.float32)
    if step.size not in (1, bias.size) or not (step > 0).all():
        return None  # a scale of the product below what float32 holds
    codes = np.rint(bias.astype(np.float64) / step)
    return None if np.abs(codes).max(initial=0) > LIMIT else (codes.astype(np.int32), step)
