"""Shift-log quantizers as functions of standard operators."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxquant.quantizer_nodes.functions import add_functions, calls
from onnxquant.quantizer_nodes.making import Maker
from onnxquant.quantizer_nodes.shift_log_functions import SHIFT_LOG_FUNCTIONS
from onnxquant.quantizers.shift_log import ShiftLogQuantizer


def shift_log(make: Maker, tensor: gs.Tensor, quantizer: ShiftLogQuantizer) -> list[gs.Node]:
    """ShiftLogQuantizeLinear and ShiftLogDequantizeLinear, whose bodies are added to the graph."""
    add_functions(make.graph, SHIFT_LOG_FUNCTIONS)
    minimum, maximum = quantizer.clip_range
    grid = {
        "shift": float(quantizer.shift),
        "unit": quantizer.unit,
        "log_step": quantizer.step,
        "centre": float(quantizer.centre),
    }
    there = {**grid, "minimum": minimum, "maximum": maximum}
    return calls(make, tensor, "ShiftLog", there, {**grid, "threshold": quantizer.threshold})
