"""Turn the plan into nodes: the one place where quantizers become ONNX.

A weight becomes an integer initializer with a DequantizeLinear behind it; no float copy stays. An activation goes
through a quantize and a dequantize node on its way to its consumers; a graph output keeps the original value.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.errors import OnnxquantError
from onnxquant.graph.convolution import from_rows, tap_mean, to_rows
from onnxquant.graph.log2_functions import DOMAIN, add_log2_functions
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers import rounding
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.uniform import UniformQuantizer


class InsertQuantizers(Pass):
    """Insert the quantizers that the plan names."""

    requires: ClassVar[frozenset[str]] = frozenset({"plan"})
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        tensors = graph.tensors()
        for entry in context.plan.entries:
            tensor = tensors.get(entry.tensor)
            if tensor is None:
                raise OnnxquantError(
                    f"plan: tensor {entry.tensor} is not in {context.model.name}; is the plan for another model?"
                )
            if (
                entry.role == "weight"
                and isinstance(tensor, gs.Constant)
                and isinstance(entry.quantizer, UniformQuantizer)
            ):
                _quantize_weight(graph, tensor, entry, entry.quantizer)
            elif (
                entry.role == "activation"
                and isinstance(tensor, gs.Variable)
                and isinstance(entry.quantizer, Log2Quantizer)
            ):
                _quantize_log2(graph, tensor, entry.quantizer)
            else:
                raise OnnxquantError(
                    f"plan: {entry.quantizer.kind} quantizer doesn't fit tensor {entry.tensor} as {entry.role}"
                )
        graph.cleanup()
        count = len(context.plan.entries)
        return PassResult(count > 0, (f"{count} quantizers inserted",) if count else ("the plan is empty",))


def _quantize_weight(graph: gs.Graph, weight: gs.Constant, entry: PlanEntry, quantizer: UniformQuantizer) -> None:
    layer = weight.outputs[0]
    channels = weight.shape[quantizer.axis] if quantizer.axis is not None else None
    if quantizer.scale.shape != (() if channels is None else (channels,)):
        raise OnnxquantError(
            f"plan: {quantizer.scale.size} scales for tensor {weight.name} of shape {tuple(weight.shape)}; "
            "is the plan for another model?"
        )
    codes = _codes(layer, weight, entry, quantizer).astype(quantizer.code_dtype)
    parameters = [
        gs.Constant(f"{weight.name}_quantized", codes),
        gs.Constant(f"{weight.name}_scale", quantizer.scale.astype(weight.dtype)),
        gs.Constant(f"{weight.name}_zero_point", quantizer.zero_point.astype(quantizer.code_dtype)),
    ]
    dequantized = gs.Variable(f"{weight.name}_dequantized", weight.dtype, weight.shape)
    attributes = {} if quantizer.axis is None else {"axis": quantizer.axis}
    node = gs.Node("DequantizeLinear", f"{weight.name}_DequantizeLinear", attributes, parameters, [dequantized])
    _replace_uses(weight, dequantized)
    _insert_before_readers(graph, dequantized, [node])


def _codes(layer: gs.Node, weight: gs.Constant, entry: PlanEntry, quantizer: UniformQuantizer) -> NDArray[np.floating]:
    values = weight.values.astype(np.float32)
    if entry.rounding is None or entry.rounding.mode == "nearest":
        return quantizer.quantize(values)
    zero_point = quantizer.along_axis(quantizer.zero_point, values)
    means = entry.rounding.channel_mean
    rows = rounding.sum_preserving(
        to_rows(layer, quantizer.scaled(values)),
        to_rows(layer, quantizer.along_axis(quantizer.scale, values)),
        [to_rows(layer, bound - zero_point) for bound in quantizer.code_range],
        1.0 if means is None else to_rows(layer, tap_mean(layer, np.asarray(means))),
    )
    return from_rows(layer, rows) + zero_point


def _quantize_log2(graph: gs.Graph, tensor: gs.Variable, quantizer: Log2Quantizer) -> None:
    add_log2_functions(graph)
    codes = gs.Variable(f"{tensor.name}_log2_codes", np.int8, tensor.shape)
    dequantized = gs.Variable(f"{tensor.name}_log2_dequantized", tensor.dtype, tensor.shape)
    _replace_uses(tensor, dequantized)
    minimum, maximum = quantizer.clip_range
    step = {"log_offset": quantizer.offset, "log_scale": quantizer.scale}
    quantize = {"epsilon": quantizer.epsilon, "minimum": minimum, "maximum": maximum, **step}
    dequantize = {**step, "to": int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype or np.float32)))}
    nodes = [
        gs.Node("Log2QuantizeLinear", f"{tensor.name}_Log2QuantizeLinear", quantize, [tensor], [codes], DOMAIN),
        gs.Node(
            "Log2DequantizeLinear", f"{tensor.name}_Log2DequantizeLinear", dequantize, [codes], [dequantized], DOMAIN
        ),
    ]
    _insert_before_readers(graph, dequantized, nodes)


def _replace_uses(tensor: gs.Tensor, replacement: gs.Variable) -> None:
    for consumer in list(tensor.outputs):
        for position, used in enumerate(consumer.inputs):
            if used is tensor:
                consumer.inputs[position] = replacement


def _insert_before_readers(graph: gs.Graph, tensor: gs.Variable, nodes: list[gs.Node]) -> None:
    """Put `nodes`, the last of which makes `tensor`, where the graph stays in topological order and otherwise as it
    was.
    """
    readers = {id(reader) for reader in tensor.outputs}
    first = next(i for i, node in enumerate(graph.nodes) if id(node) in readers or _subgraphs_read(node, tensor))
    graph.nodes[first:first] = nodes


def _subgraphs_read(node: gs.Node, tensor: gs.Variable) -> bool:
    return any(tensor.name in subgraph.tensors() for subgraph in node.subgraphs())
