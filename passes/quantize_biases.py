"""Store the biases of integer layers as int32, for targets that take it.

An integer kernel adds up codes of activation x weight in steps of input scale x weight scale. A bias in the same steps
is added as it is, and the kernel needs no float bias: ONNX Runtime has integer kernels for no other. With fewer than 8
bits these steps are long for a bias, and there are no kernels to gain: it stays in float.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.graph.edit import UniqueNames
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.quantizers.bias import bias_codes


class QuantizeBiases(Pass):
    """Turn the float bias of every Conv and Gemm with integer input and weight into int32. Runs after every recipe."""

    requires: ClassVar[frozenset[str]] = frozenset({"plan"})
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        if "int32" not in context.target.codes:
            return PassResult(False, (f"target {context.target.name} takes biases as they are",))
        unique, nodes, count = UniqueNames.of_tensors(graph), [], 0
        coarse = {
            name
            for entry in context.plan.entries
            if entry.quantizer.bits < 8
            for name in context.dequantized.get(entry.tensor, ())
        }
        for layer in graph.nodes:
            if coarse.isdisjoint(tensor.name for tensor in layer.inputs) and (dequantize := _int32_bias(layer, unique)):
                nodes.append(dequantize)
                count += 1
            nodes.append(layer)
        graph.nodes = nodes
        return PassResult(count > 0, (f"{count} biases to int32" if count else "no integer layer has a bias",))


def _int32_bias(layer: gs.Node, unique: UniqueNames) -> gs.Node | None:
    """The node that dequantizes the layer's new bias; None where there is none to be had."""
    if layer.op not in ("Conv", "Gemm") or len(layer.inputs) < 3 or not isinstance(layer.inputs[2], gs.Constant):
        return None
    bias = layer.inputs[2]
    read, weight = (_scale(tensor) for tensor in layer.inputs[:2])
    if bias.dtype != np.float32 or bias.values.ndim != 1 or read is None or weight is None:
        return None
    found = bias_codes(bias.values, read, weight)
    if found is None:
        return None
    codes, step = found
    parameters = [
        gs.Constant(unique(f"{bias.name}_quantized"), codes),
        gs.Constant(unique(f"{bias.name}_scale"), step),
    ]
    dequantized = gs.Variable(unique(f"{bias.name}_dequantized"), np.float32, bias.shape)
    layer.inputs[2] = dequantized
    attributes = {"axis": 0} if step.ndim else {}
    return gs.Node("DequantizeLinear", f"{layer.name}_bias_DequantizeLinear", attributes, parameters, [dequantized])


def _scale(tensor: gs.Tensor) -> NDArray[np.floating] | None:
    """The scale of the codes that a tensor is made of; None where it isn't made of codes of 8 bits."""
    if len(tensor.inputs) != 1 or tensor.inputs[0].op != "DequantizeLinear":
        return None
    scale = tensor.inputs[0].inputs[1]
    if not isinstance(scale, gs.Constant):
        return None
    values: NDArray[np.floating] = scale.values
    return values
