"""The bias of a weighted layer: what is added to each of its output channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.graph.convolution import WEIGHTED, output_channel_axis, to_rows
from onnxquant.graph.edit import UniqueNames


def takes_bias(layer: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether a constant added to all of `tensor`, which `layer` reads, can be taken back by the layer's bias alone.

    That needs a constant weight, zeros as padding that the node itself states, and a bias that is constant or absent.
    """
    if layer.op not in WEIGHTED or layer.op == "ConvTranspose" or layer.inputs[0] is not tensor:
        return False
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    if not isinstance(weight, gs.Constant) or not (bias is None or bias.is_empty() or isinstance(bias, gs.Constant)):
        return False
    if layer.op == "Conv":
        return layer.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    factors = (layer.attrs.get("alpha", 1.0), layer.attrs.get("beta", 1.0), layer.attrs.get("transA", 0))
    return len(weight.shape) == 2 and factors == (1, 1, 0)


def weight_sums(layer: gs.Node, weight: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of the weights of every output channel: (M,).

    Args:
        layer: a weighted layer.
        weight: its weight, or what is computed with instead.
    """
    sums: NDArray[np.float64] = to_rows(layer, weight.astype(np.float64)).sum(axis=1)
    return sums


def add_to_bias(graph: gs.Graph, layer: gs.Node, values: NDArray[Any], unique: UniqueNames) -> gs.Node | None:
    """Add a value to each output channel of a Conv, Gemm or MatMul.

    Args:
        graph: that `layer` is in.
        layer: takes a bias (see `takes_bias`).
        values: shape (M,).
        unique: names of the graph's tensors.

    Returns:
        A new node, to be put behind `layer`, where it has no bias of its own; else None.
    """
    weight = layer.inputs[1]
    if layer.op == "MatMul":
        return _bias_behind(graph, layer, values.astype(weight.dtype), unique)
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    count = weight.shape[output_channel_axis(layer)]
    before = np.zeros(count) if bias is None or bias.is_empty() else bias.values.astype(np.float64)
    constant = gs.Constant(unique(f"{weight.name}_bias"), np.asarray(before + values, weight.dtype))
    layer.inputs = [*layer.inputs[:2], constant]
    return None


def _bias_behind(graph: gs.Graph, layer: gs.Node, values: NDArray[Any], unique: UniqueNames) -> gs.Node | None:
    """A MatMul's bias is the constant of an Add that alone reads it; there may be none.

    What the MatMul writes is no longer what it was, and gets a name of its own.
    """
    output = layer.outputs[0]
    product = gs.Variable(unique(f"{output.name}_without_bias"), output.dtype, output.shape)
    layer.outputs = [product]
    is_output = any(output is tensor for tensor in graph.outputs)
    if len(output.outputs) == 1 and output.outputs[0].op == "Add" and not is_output:
        add = output.outputs[0]
        position = next(i for i, tensor in enumerate(add.inputs) if tensor is output)
        other = add.inputs[1 - position]
        if isinstance(other, gs.Constant) and other.values.shape == values.shape:
            bias = gs.Constant(unique(f"{other.name}_shifted"), other.values + values)
            add.inputs[position], add.inputs[1 - position] = product, bias
            return None
    bias = gs.Constant(unique(f"{layer.inputs[1].name}_bias"), values)
    return gs.Node("Add", f"{layer.name}_bias", {}, [product, bias], [output])
