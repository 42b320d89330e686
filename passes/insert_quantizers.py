"""Turn the plan into nodes: the one place where quantizers become ONNX.

A weight becomes an integer initializer with a DequantizeLinear behind it; no float copy stays. An activation goes
through a quantize and a dequantize node on its way to its consumers; a graph output keeps the original value.
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.errors import OnnxquantError
from onnxquant.graph.convolution import CONVOLUTIONS, from_rows, input_channels, output_channel_axis, tap_mean, to_rows
from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.graph.log2_functions import DOMAIN, add_log2_functions
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers import rounding
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.targets import Target


class InsertQuantizers(Pass):
    """Insert the quantizers that the plan names. Runs after every recipe; no recipe lists it.

    Plans may come from a user's hands: an entry that doesn't fit the graph or the target is an error that names its
    tensor, and nothing is inserted.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"plan"})
    exact: ClassVar[bool] = False

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        tensors = graph.tensors()
        inserter = _Inserter(graph)
        for entry in context.plan.entries:
            tensor = tensors.get(entry.tensor)
            if tensor is None:
                raise _misfit(entry, f"is not in {context.model.name}")
            if entry.role == "weight" and isinstance(entry.quantizer, UniformQuantizer):
                _check_weight(tensor, entry, entry.quantizer, context.target)
                inserter.quantize_weight(tensor, entry, entry.quantizer)
            elif entry.role == "activation" and isinstance(entry.quantizer, Log2Quantizer):
                _check_activation(tensor, entry)
                inserter.quantize_log2(tensor, entry.quantizer)
            else:
                raise _misfit(entry, f"is an {entry.role}, which no {entry.quantizer.kind} quantizer is for")
        inserter.finish()
        graph.cleanup()
        count = len(context.plan.entries)
        return PassResult(count > 0, (f"{count} quantizers inserted",) if count else ("the plan is empty",))


def _misfit(entry: PlanEntry, what: str) -> OnnxquantError:
    return OnnxquantError(f"plan: tensor {entry.tensor} {what}; is the plan for another model or target?")


def _check_weight(tensor: gs.Tensor, entry: PlanEntry, quantizer: UniformQuantizer, target: Target) -> None:
    layer = tensor.outputs[0] if len(tensor.outputs) == 1 else None
    if (
        not isinstance(tensor, gs.Constant)
        or layer is None
        or layer.op not in CONVOLUTIONS
        or layer.inputs[1] is not tensor
    ):
        raise _misfit(entry, "is not the weight of a convolution")
    axis = output_channel_axis(layer)
    if quantizer.axis is not None and (quantizer.axis != axis or quantizer.scale.size != tensor.shape[axis]):
        raise _misfit(
            entry, f"of shape {tuple(tensor.shape)} can't have {quantizer.scale.size} scales on axis {quantizer.axis}"
        )
    means = entry.rounding.channel_mean if entry.rounding else None
    if means is not None and len(means) != input_channels(layer):
        raise _misfit(entry, f"has {input_channels(layer)} input channels, but {len(means)} means")
    if not quantizer.signed and not target.unsigned:
        raise _misfit(entry, f"is to be uint8, which target {target.name} refuses")
    if quantizer.zero_point.any() and not target.zero_point:
        raise _misfit(entry, f"has a zero-point, which target {target.name} refuses")


def _check_activation(tensor: gs.Tensor, entry: PlanEntry) -> None:
    if not tensor.inputs or not tensor.outputs:
        raise _misfit(entry, "is not a value that one node computes and another reads")


class _Inserter:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph, self.unique = graph, UniqueNames.of_tensors(graph)
        self._positions = {id(node): position for position, node in enumerate(graph.nodes)}
        self._inner_readers: dict[str, list[int]] = {}  # nodes whose subgraphs read a tensor from outside
        for position, node in enumerate(graph.nodes):
            for name in (name for subgraph in node.subgraphs() for name in subgraph.tensors()):
                self._inner_readers.setdefault(name, []).append(position)
        self._before: defaultdict[int, list[gs.Node]] = defaultdict(list)  # new nodes, by the node they go before

    def quantize_weight(self, weight: gs.Constant, entry: PlanEntry, quantizer: UniformQuantizer) -> None:
        codes = _codes(weight, entry, quantizer).astype(quantizer.code_dtype)
        parameters = [
            gs.Constant(self.unique(f"{weight.name}_quantized"), codes),
            gs.Constant(self.unique(f"{weight.name}_scale"), np.asarray(quantizer.scale, weight.dtype)),
            gs.Constant(
                self.unique(f"{weight.name}_zero_point"), np.asarray(quantizer.zero_point, quantizer.code_dtype)
            ),
        ]
        attributes = {} if quantizer.axis is None else {"axis": quantizer.axis}
        dequantized = gs.Variable(self.unique(f"{weight.name}_dequantized"), weight.dtype, weight.shape)
        node = gs.Node("DequantizeLinear", f"{weight.name}_DequantizeLinear", attributes, parameters, [dequantized])
        self._before[self._first_reader(weight)].append(node)
        replace_uses(weight, dequantized)

    def quantize_log2(self, tensor: gs.Variable, quantizer: Log2Quantizer) -> None:
        add_log2_functions(self.graph)
        codes = gs.Variable(self.unique(f"{tensor.name}_log2_codes"), np.int8, tensor.shape)
        dequantized = gs.Variable(self.unique(f"{tensor.name}_log2_dequantized"), tensor.dtype, tensor.shape)
        minimum, maximum = quantizer.clip_range
        step = {"log_offset": quantizer.offset, "log_scale": quantizer.scale}
        quantize = {"epsilon": quantizer.epsilon, "minimum": minimum, "maximum": maximum, **step}
        dequantize = {**step, "to": int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype or np.float32)))}
        before = self._before[self._first_reader(tensor)]
        replace_uses(tensor, dequantized)
        before += [
            gs.Node("Log2QuantizeLinear", f"{tensor.name}_Log2QuantizeLinear", quantize, [tensor], [codes], DOMAIN),
            gs.Node(
                "Log2DequantizeLinear",
                f"{tensor.name}_Log2DequantizeLinear",
                dequantize,
                [codes],
                [dequantized],
                DOMAIN,
            ),
        ]

    def _first_reader(self, tensor: gs.Tensor) -> int:
        """Position of the first node that reads `tensor`, by itself or in a subgraph."""
        readers = [self._positions[id(reader)] for reader in tensor.outputs if id(reader) in self._positions]
        return min(readers + self._inner_readers.get(tensor.name, []))

    def finish(self) -> None:
        """Put the new nodes into the graph, which stays sorted and otherwise as it was."""
        self.graph.nodes = [
            node
            for position, original in enumerate(self.graph.nodes)
            for node in (*self._before.get(position, ()), original)
        ]


def _codes(weight: gs.Constant, entry: PlanEntry, quantizer: UniformQuantizer) -> NDArray[np.floating]:
    values = weight.values.astype(np.float32)
    if entry.rounding is None or entry.rounding.mode == "nearest":
        return quantizer.quantize(values)
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
