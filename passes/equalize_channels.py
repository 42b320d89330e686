"""Give the channels of an activation equal ranges, so that one scale serves them all.

    y = W f(V x + c) + b = (W S) f(S⁻¹ (V x + c)) + b        S = diag(s), f(s x) = s f(x) for s > 0

Dividing what writes an activation by s, a number a channel, and multiplying the weights of everything that reads it by
s changes nothing but the ranges between. Exact up to float rounding, in three places:

    a norm's scale and shift    LayerNormalization, or a Mul and an Add behind any norm (RepQ-ViT, without its shift)
    a weighted layer            with nothing behind it, or with functions f that only scale with their input: ReLU and
                                its leaky kin, pools (Nagel et al. 2019); not SiLU, GELU or Sigmoid
    a multiplication            a new node, on the way into a depthwise Conv, where neither can be

The last one is no fold, but pays most. A depthwise Conv sees one channel at a time: a channel with a tenth of the
tensor's range is left with a tenth of the codes. And kernels that tell edges, as trained hybrids have them, take away
the large part that neighbouring pixels share and keep all of the noise.

Ranges are estimated from the weights alone, so that this comes before calibration and the data runs once. A depthwise
Conv, whose weights have a scale a channel, takes any s: it is the range. Other weights share a scale among their input
channels: s is the root of range over largest weight, which levels both (SmoothQuant, Eq. 4, α = 1/2).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.errors import OnnxquantError
from onnxquant.graph.channel_scales import ChannelScales, Place, Writer, is_depthwise
from onnxquant.graph.convolution import tap_mean, to_rows
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.targets.placement import runs_on_integers

NORM_DEVIATIONS, LAYER_DEVIATIONS = 3.0, 6.0
"""How many standard deviations a channel is taken to reach from its centre. Behind a norm the deviation is its scale;
behind a layer it is taken to be its kernel's 2-norm, as if the inputs had deviation 1."""

SMALLEST = 1e-3
"""Of the largest: a channel with a smaller range, or smaller weights, counts as having this much."""

LEAST_FOLDED, LEAST_MULTIPLIED, LEAST_SHARED = 1.01, 1.5, 4.0
"""How far the longest reach has to exceed the geometric mean of all to be worth a scale: where it is free, where it
costs a Mul, and where it makes weights unequal that share a scale. The last is for the outliers of larger ViTs: the
norms of trained MobileViTs stay below 3, and equalising those moved the result at 8 bits by no more than 0.3 dB, up or
down."""


class EqualizeChannels(Pass):
    """Equalise the ranges of channels by scales folded into the weights around them. Goes before calibrate.

    Attributes:
        multiply: where the scale can't be folded, as behind a SiLU, multiply by it on the way into a depthwise Conv, if
            the target runs that on integers. Costs one elementwise operation each.
    """

    multiply: bool = True

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        plan, channel_scales = context.plan, ChannelScales(graph)
        if context.observations or plan.entries or plan.channel_scales:
            raise OnnxquantError(
                "recipe: equalize_channels changes weights and ranges; put it before calibrate and the passes that "
                "quantize"
            )
        folded = multiplied = 0
        for tensor in [tensor for node in graph.nodes for tensor in node.outputs]:
            place = channel_scales.place(tensor)
            if place is None or not (place.folds or self._may_multiply(place, context)):
                continue
            scales = _scales(place)
            if scales is not None and channel_scales.apply(place, scales):
                plan.channel_scales[tensor.name] = scales.tolist()
                folded, multiplied = folded + place.folds, multiplied + (not place.folds)
        if not plan.channel_scales:
            return PassResult(False, ("no activation with unequal channels whose writer and readers all take a scale",))
        said = [f"{folded} folded into weights"] if folded else []
        said += [f"{multiplied} multiplied before a depthwise Conv"] if multiplied else []
        return PassResult(True, (", ".join(said),))

    def _may_multiply(self, place: Place, context: PassContext) -> bool:
        """Whether a Mul is allowed, and there is an integer layer to gain by it."""
        return self.multiply and any(runs_on_integers(layer, context.target.placement) for layer in place.readers)


def _scales(place: Place) -> NDArray[np.float32] | None:
    """s, with geometric mean 1: float32 (C,); None where it isn't worth it."""
    scales = reach = _floored(_reach(place.writer))
    least = LEAST_FOLDED if place.folds else LEAST_MULTIPLIED
    if not all(map(is_depthwise, place.readers)):
        weights = np.max([_largest_weights(reader, place) for reader in place.readers], axis=0)
        scales, least = np.sqrt(reach / _floored(weights)), LEAST_SHARED
    if reach.max() < least * _geometric_mean(reach):
        return None
    return np.asarray(scales / _geometric_mean(scales), np.float32)


def _geometric_mean(values: NDArray[np.float64]) -> float:
    return float(np.exp(np.log(values).mean()))


def _reach(writer: Writer) -> NDArray[np.float64]:
    """How far from zero each channel is likely to get: float64 (C,)."""
    centre = np.abs(sum((shift.values for shift in writer.shifts), start=np.zeros(1)))
    if writer.scale is not None:
        return np.asarray(centre + NORM_DEVIATIONS * np.abs(writer.scale.values))
    assert writer.layer is not None
    rows = to_rows(writer.layer, writer.layer.inputs[1].values.astype(np.float64))
    return np.asarray(centre + LAYER_DEVIATIONS * np.linalg.norm(rows, axis=1))


def _largest_weights(layer: gs.Node, place: Place) -> NDArray[np.float64]:
    """The largest magnitude among the weights that each input channel meets: float64 (C,)."""
    weight = np.abs(layer.inputs[1].values.astype(np.float64))
    channel = np.broadcast_to(tap_mean(layer, np.arange(place.channels)), weight.shape)
    largest = np.zeros(place.channels)
    np.maximum.at(largest, channel, weight)
    return largest


def _floored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(values, max(SMALLEST * values.max(), float(np.finfo(np.float32).tiny)))
