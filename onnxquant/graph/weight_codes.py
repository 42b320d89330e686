"""The codes that a plan makes of a weight, and the values they stand for."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.errors import OnnxquantError
from onnxquant.graph.convolution import from_rows, tap_mean, to_rows
from onnxquant.plan import PlanEntry
from onnxquant.quantizers import rounding
from onnxquant.quantizers.uniform import UniformQuantizer


def weight_codes(weight: gs.Constant, entry: PlanEntry, quantizer: UniformQuantizer) -> NDArray[np.floating]:
    """Whole numbers in the weight's shape, rounded as the entry says.

    Args:
        weight: read by one layer.
        entry: the plan's.
        quantizer: the entry's.

    Raises:
        OnnxquantError: the entry's rounding is of another weight.
    """
    values = weight.values.astype(np.float32)
    if entry.rounding is None or entry.rounding.mode == "nearest":
        return quantizer.quantize(values)
    if entry.rounding.mode == "learned":
        down = np.floor(quantizer.scaled(values)) + quantizer.along_axis(quantizer.zero_point, values)
        try:
            up = entry.rounding.rounds_up(values.shape)
        except ValueError as error:
            raise OnnxquantError(f"plan: tensor {entry.tensor} {error}; is the plan for another model?") from None
        return np.clip(down + up, *quantizer.code_range)
    layer = weight.outputs[0]
    zero_point = quantizer.along_axis(quantizer.zero_point, values)
    means = entry.rounding.channel_mean
    rows = rounding.sum_preserving(
        to_rows(layer, quantizer.scaled(values)),
        to_rows(layer, quantizer.along_axis(quantizer.scale, values)),
        [to_rows(layer, bound - zero_point) for bound in quantizer.code_range],
        1.0 if means is None else to_rows(layer, tap_mean(layer, np.asarray(means))),
    )
    return from_rows(layer, rows) + zero_point


def weight_values(weight: gs.Constant, entry: PlanEntry, quantizer: UniformQuantizer) -> NDArray[np.float32]:
    """What the codes stand for: float32 in the weight's shape. Arguments and errors are those of `weight_codes`."""
    values: NDArray[np.float32] = quantizer.dequantize(weight_codes(weight, entry, quantizer).astype(np.float32))
    return values
