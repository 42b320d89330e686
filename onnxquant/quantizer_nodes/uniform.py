"""Uniform quantizers as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.quantizer_nodes.making import Maker
from onnxquant.quantizers.uniform import UniformQuantizer


def parameters(make: Maker, quantizer: UniformQuantizer) -> list[gs.Constant]:
    """Scale and zero-point, as QuantizeLinear and DequantizeLinear take them."""
    return [
        make.constant("scale", quantizer.scale),
        make.constant("zero_point", quantizer.zero_point, quantizer.code_dtype),
    ]


def uniform(make: Maker, tensor: gs.Tensor, quantizer: UniformQuantizer) -> list[gs.Node]:
    """QuantizeLinear and DequantizeLinear; below 8 bits a Clip to the outermost codes before them."""
    constants, nodes, value = parameters(make, quantizer), [], tensor
    if quantizer.bits < 8:  # QuantizeLinear saturates at 8 bits
        low, high = quantizer.dequantize(np.array(quantizer.code_range, np.float32))
        bounds = [make.constant("low", low), make.constant("high", high)]
        nodes.append(make.node("Clip", [tensor, *bounds], "clipped"))
        value = nodes[-1].outputs[0]
    quantize = make.node("QuantizeLinear", [value, *constants], "codes", dtype=quantizer.code_dtype)
    dequantize = make.node("DequantizeLinear", [quantize.outputs[0], *constants], "dequantized")
    return [*nodes, quantize, dequantize]
