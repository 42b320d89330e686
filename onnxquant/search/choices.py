"""What a tensor's quantizer may become: for each granularity and scheme, an entry of the plan for every ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxquant.graph.convolution import output_channel_axis
from onnxquant.plan import PlanEntry, Rounding
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.search.layers import Weighted

Granularity = Literal["layer", "channel"]
Scheme = Literal["symmetric", "asymmetric"]

Ratios: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A granularity and a scheme.

    Attributes:
        make: the entry for ratios of shape (count,), each a part of the range that clips nothing.
        count: how many ratios can be chosen independently of each other.
    """

    make: Callable[[Ratios], PlanEntry]
    count: int = 1


def weight_choices(
    layer: Weighted,
    entry: PlanEntry,
    granularities: Sequence[Granularity],
    schemes: Sequence[Scheme],
    joint: bool,
) -> Iterator[Choice]:
    """Those of a layer's weights.

    Args:
        layer: see there.
        entry: the weights' own, uniform.
        granularities: a scale for all of them, or one for each output channel.
        schemes: that the target takes.
        joint: all channels take the same ratio.
    """
    values, channels = layer.node.inputs[1].values, output_channel_axis(layer.node)
    for granularity in granularities:
        axis = channels if granularity == "channel" else None
        others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
        low, high = (np.asarray(extreme(values, axis=others), np.float64) for extreme in (np.min, np.max))
        for scheme in schemes:
            make = partial(_weights, entry, low, high, axis, scheme == "symmetric", values.dtype)
            yield Choice(make, 1 if joint else low.size)


def _weights(
    entry: PlanEntry,
    low: Ratios,
    high: Ratios,
    axis: int | None,
    symmetric: bool,
    dtype: type[np.floating],
    ratios: Ratios,
) -> PlanEntry:
    factor = ratios if low.ndim else ratios[0]
    quantizer = UniformQuantizer.from_range(
        low * factor, high * factor, bits=entry.quantizer.bits, symmetric=symmetric, axis=axis, scale_dtype=dtype
    )
    return entry.model_copy(update={"quantizer": quantizer, "rounding": Rounding(mode="nearest")})


def activation_choices(
    entry: PlanEntry, low: float, high: float, schemes: Sequence[Scheme], zero_point: bool, shift: bool
) -> Iterator[Choice]:
    """Those of an activation.

    Args:
        entry: its own, uniform.
        low: the smallest value seen.
        high: the largest.
        schemes: wanted.
        zero_point: whether the target has zero-points.
        shift: whether everything that reads the codes can make up for a shift.
    """
    if "symmetric" in schemes:
        yield Choice(partial(_symmetric, entry, max(-low, high), zero_point))
    if "asymmetric" in schemes and (zero_point or shift):
        yield Choice(partial(_asymmetric if zero_point else _shifted, entry, low, high))


def _symmetric(entry: PlanEntry, largest: float, unsigned: bool, ratios: Ratios) -> PlanEntry:
    reach = np.array(largest * ratios[0])
    quantizer = UniformQuantizer.from_range(-reach, reach, bits=entry.quantizer.bits, symmetric=True)
    if unsigned:  # the same codes, as the kernels for zero-points are quicker with them
        middle = np.array(2 ** (quantizer.bits - 1))
        quantizer = UniformQuantizer(quantizer.bits, False, quantizer.scale, middle)
    return entry.model_copy(update={"quantizer": quantizer, "shift": None})


def _asymmetric(entry: PlanEntry, low: float, high: float, ratios: Ratios) -> PlanEntry:
    quantizer = UniformQuantizer.from_range(
        np.array(low * ratios[0]), np.array(high * ratios[0]), bits=entry.quantizer.bits, symmetric=False
    )
    return entry.model_copy(update={"quantizer": quantizer, "shift": None})


def _shifted(entry: PlanEntry, low: float, high: float, ratios: Ratios) -> PlanEntry:
    low, high = min(low, 0.0) * ratios[0], max(high, 0.0) * ratios[0]
    quantizer, steps = UniformQuantizer.around_middle(low, high, entry.quantizer.bits)
    return entry.model_copy(update={"quantizer": quantizer, "shift": float(quantizer.scale) * steps})
