"""Quantizers as ONNX nodes, one file a kind: from the float value to the one that its codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_graphsurgeon as gs

from onnxquant.quantizer_nodes.log2 import log2
from onnxquant.quantizer_nodes.making import Maker
from onnxquant.quantizer_nodes.power_of_two import power_of_two
from onnxquant.quantizer_nodes.shift_log import shift_log
from onnxquant.quantizer_nodes.twin_uniform import twin_uniform
from onnxquant.quantizer_nodes.uniform import parameters, uniform
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.power_of_two import PowerOfTwoFactorQuantizer
from onnxquant.quantizers.shift_log import ShiftLogQuantizer
from onnxquant.quantizers.twin_uniform import TwinUniformQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer

__all__ = ["Maker", "parameters", "quantizer_nodes"]

_MAKERS: dict[type, Callable[[Maker, gs.Tensor, Any], list[gs.Node]]] = {
    UniformQuantizer: uniform,
    Log2Quantizer: log2,
    TwinUniformQuantizer: twin_uniform,
    ShiftLogQuantizer: shift_log,
    PowerOfTwoFactorQuantizer: power_of_two,
}


def quantizer_nodes(make: Maker, tensor: gs.Tensor, quantizer: Any) -> list[gs.Node]:
    """The nodes that quantize a tensor and dequantize its codes, in order; the last one's output is the result.

    Args:
        make: names them.
        tensor: float, read by the first.
        quantizer: any that the plan may hold.
    """
    return _MAKERS[type(quantizer)](make, tensor, quantizer)
