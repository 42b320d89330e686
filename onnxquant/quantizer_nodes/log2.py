"""log2 quantizers as functions of standard operators."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxquant.quantizer_nodes.functions import add_functions, calls
from onnxquant.quantizer_nodes.log2_functions import LOG2_FUNCTIONS
from onnxquant.quantizer_nodes.making import Maker
from onnxquant.quantizers.log2 import Log2Quantizer


def log2(make: Maker, tensor: gs.Tensor, quantizer: Log2Quantizer) -> list[gs.Node]:
    """Log2QuantizeLinear and Log2DequantizeLinear, whose bodies are added to the graph."""
    add_functions(make.graph, LOG2_FUNCTIONS)
    minimum, maximum = quantizer.clip_range
    step = {"log_offset": quantizer.offset, "log_scale": quantizer.scale}
    there = {"epsilon": quantizer.epsilon, "minimum": minimum, "maximum": maximum, **step}
    return calls(make, tensor, "Log2", there, step)
