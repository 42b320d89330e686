"""Give the channels behind a norm one range, by scales and shifts folded into the weights around (RepQ-ViT).

    h = γ n + β           read by          y = W h + b
    h' = h / r − t        r = extent / mean extent,  t = middle / r        γ' = γ / r,  β' = β / r − t
    y = W' h' + b'        W' = W r,  b' = b + W' t

What a LayerNorm writes differs from channel to channel by orders of magnitude. A scale and zero-point for each channel
would fit, but no runtime multiplies such codes: scales of input channels differ within one sum. So the float graph is
changed, exactly up to float rounding, until all channels cover the same range and one scale serves the layer (Li et
al., ICCV 2023, Eqs. 8 to 13). The ratio of two channels' scales is that of their extents at any number of bits.

The paper moves every zero-point to their mean. Any other one is as good, since the shift makes up for it: here the
range is centred on zero, so that targets without zero-points lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.calibration.observers import ChannelMinMax, LastAxisMinMax
from onnxquant.graph.channel_scales import ChannelScales, Place
from onnxquant.graph.convolution import LINEAR
from onnxquant.graph.topology import NORMS
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult

SMALLEST = 1e-3
"""Of the largest: a channel with a smaller extent counts as having this much."""


class ReparameterizeNorms(Pass):
    """Fold per-channel ranges behind norms into the weights around. Goes behind a calibrate, with another behind it.

    A norm takes part if it has a shift, and all that reads it are layers whose bias can make up for another.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"observations"})
    voids: ClassVar[frozenset[str]] = frozenset({"observations"})

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        return ((place.tensor.name, _observer(place)) for place in _places(graph, ChannelScales(graph), context))

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        plan, channel_scales = context.plan, ChannelScales(graph)
        norms, changed = sum(node.op in NORMS for node in graph.nodes), 0
        for place in _places(graph, channel_scales, context):
            seen = context.observed(place.tensor.name, _observer(place))
            if seen is None:
                return PassResult(False, ("no calibration data: ranges of channels are not known",))
            scales, shifts = _scales_and_shifts(seen)
            if channel_scales.apply(place, scales, shifts):
                plan.channel_scales[place.tensor.name] = scales.tolist()
                plan.channel_shifts[place.tensor.name] = shifts.tolist()
                changed += 1
        context.observations.clear()
        notes = [
            f"{changed} norms to one range for all channels"
            if changed
            else "no norm with a shift that only linear layers read"
        ]
        if changed and (left := norms - changed) > 0:
            notes.append(f"{left} left: others than linear layers read them, or they have no shift")
        return PassResult(changed > 0, tuple(notes))


def _places(graph: gs.Graph, channel_scales: ChannelScales, context: PassContext) -> Iterator[Place]:
    """What norms write for linear layers alone, unless it has scales already."""
    for tensor in [tensor for node in graph.nodes for tensor in node.outputs]:
        place = channel_scales.place(tensor) if tensor.name not in context.plan.channel_scales else None
        if place is not None and place.folds and place.shifts and place.writer.scale is not None:
            yield place


def _observer(place: Place) -> type[ChannelMinMax]:
    return LastAxisMinMax if place.readers[0].op in LINEAR else ChannelMinMax


def _scales_and_shifts(seen: ChannelMinMax) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The channels' r and t: float32 (C,) each."""
    low, high = seen.minimum.astype(np.float64), seen.maximum.astype(np.float64)
    extent = high - low
    extent = np.maximum(extent, max(SMALLEST * extent.max(), float(np.finfo(np.float32).tiny)))
    scales = (extent / extent.mean()).astype(np.float32)
    return scales, ((high + low) / 2 / scales).astype(np.float32)
