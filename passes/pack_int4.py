"""Store the weights of 4 bits and fewer as int4, two a byte, where the target computes with them in float.

No runtime multiplies int8 by int4 codes: the builder of TensorRT-RTX 1.7 stops at most such layers. A layer whose
activations stay in float has its weights dequantized either way, and int4 halves what is stored and read. Targets that
ONNX Runtime is to be fast on keep int8: its 1.31 takes 10 to 60 % longer for such a layer with int4, and six times as
long for one with integer activations, since it has no integer kernel for int4.

The codes are the same, and so is the result. DequantizeLinear takes int4 since opset 21.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnxquant.passes.fuse_gelu import raise_opset

from onnxquant.graph.convolution import WEIGHTED
from onnxquant.graph.edit import UniqueNames
from onnxquant.graph.topology import POOLS, SHAPE_OPS, Topology
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizer_nodes.functions import DOMAIN

OPSET = 21
"""DequantizeLinear takes int4 since opset 21."""

MOVABLE = SHAPE_OPS | POOLS | {"Relu"}
"""What an optimiser may move a DequantizeLinear of an activation across, to the layer behind."""


class PackInt4(Pass):
    """Store weights as int4 where the target wants them so; raises the opset to 21. Runs after every recipe."""

    requires: ClassVar[frozenset[str]] = frozenset({"plan"})
    exact: ClassVar[bool] = False  # in ONNX Runtime, whose kernels for int8 and int4 weights round activations

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        narrow = [entry for entry in context.plan.entries if entry.role == "weight" and entry.quantizer.bits <= 4]
        for entry in context.plan.entries:
            entry.stored = None  # a plan may have been applied for another target before
        if not narrow:
            return PassResult(False, ("no weight has 4 bits or fewer",))
        if not context.target.int4_weights:
            return PassResult(False, (f"target {context.target.name} takes weights of 4 bits in int8",))
        packable, before = _packable(graph, narrow, context), graph.opset
        count = sum(len(entries) for _, _, entries in packable)
        left = f"{len(narrow) - count} stay int8: their layer reads quantized activations, or their size is odd"
        if not packable:
            return PassResult(False, (left,))
        if before < OPSET and (obstacle := _raise_opset(graph)):
            return PassResult(False, (f"all stay int8: opset {before} can't be raised to {OPSET} ({obstacle})",))
        unique = UniqueNames.of_tensors(graph)
        for codes, readers, entries in packable:
            packed = _packed(codes, unique(codes.name.removesuffix("_quantized") + "_int4"))
            for node in readers:
                node.inputs = [packed, node.inputs[1]]  # without a zero-point it is 0
            for entry in entries:
                entry.stored = "int4"
        graph.cleanup()
        raised = f", opset {before} raised to {OPSET}" if before < OPSET else ""
        return PassResult(True, (f"{count} weights to int4{raised}", *([left] if count < len(narrow) else [])))


def _packable(
    graph: gs.Graph, narrow: list[PlanEntry], context: PassContext
) -> list[tuple[gs.Constant, list[gs.Node], list[PlanEntry]]]:
    """Codes that can be int4, with the nodes that read them and the weights that they are of: equal ones are shared."""
    topology, tensors = Topology(graph), graph.tensors()
    found: dict[str, tuple[gs.Constant, list[gs.Node], list[PlanEntry]]] = {}
    for entry in narrow:
        (written,) = (tensors[name] for name in context.dequantized[entry.tensor])  # a weight is dequantized once
        node = written.inputs[0]
        if _is_symmetric(node) and _reads_floats(topology, written):
            _, nodes, entries = found.setdefault(node.inputs[0].name, (node.inputs[0], [], []))
            nodes.append(node)
            entries.append(entry)
    return [each for each in found.values() if len(each[0].outputs) == len(each[1]) and _fits(each[0])]


def _is_symmetric(node: gs.Node) -> bool:
    """Whether the zero-point of a DequantizeLinear is 0."""
    return len(node.inputs) < 3 or not (isinstance(node.inputs[2], gs.Constant) and node.inputs[2].values.any())


def _reads_floats(topology: Topology, weight: gs.Tensor) -> bool:
    """Whether all that reads a dequantized weight is layers with activations in float."""
    for reader in weight.outputs:
        if reader.op in ("Cast", "Flatten"):
            if not _reads_floats(topology, reader.outputs[0]):
                return False
            continue
        if reader.op not in WEIGHTED or reader.inputs[1] is not weight:
            return False
        start = topology.producer(reader.inputs[0])
        quantized, _ = topology.nearest(
            [] if start is None else [start],
            lambda position: topology.op(position) == "DequantizeLinear",
            lambda position: topology.op(position) in MOVABLE,
        )
        if quantized:
            return False
    return True


def _fits(codes: gs.Constant) -> bool:
    """Whether they are int4, two in every byte: TensorRT-RTX 1.7 reads no odd number of them."""
    values = codes.values
    return bool(values.dtype == np.int8 and values.size % 2 == 0 and values.min() >= -8 and values.max() <= 7)


def _packed(codes: gs.Constant, name: str) -> gs.Constant:
    tensor = onnx.helper.make_tensor(name, onnx.TensorProto.INT4, codes.shape, codes.values.ravel().tolist())
    return gs.Constant(name, LazyValues(tensor))  # graphsurgeon 0.6.1 writes arrays of int4 unpacked


def _raise_opset(graph: gs.Graph) -> str | None:
    """As `raise_opset`, with functions of ours, whose bodies mean the same in every opset."""
    functions = list(graph.functions)
    graph.functions = [function for function in functions if function.domain != DOMAIN]
    obstacle = raise_opset(graph, OPSET)
    graph.functions = functions
    for function in functions if obstacle is None else ():
        others = [entry for entry in function.import_domains or () if entry.domain not in ("", "ai.onnx")]
        function.opset, function.import_domains = OPSET, [onnx.helper.make_opsetid("", OPSET), *others]
    return obstacle
