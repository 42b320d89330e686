"""Make Gemm of linear layers, on all tokens as the rows of one matrix.

    (..., K) · (K, M) + bias  =  reshape back (Gemm(reshape to (-1, K), W, bias))

A runtime's integer kernels for linear layers are those of Gemm, which takes matrices only and adds the bias in int32.
LayerNormalization over the channels, activation functions, residual Adds and whatever else treats every token alone
work on the matrix as well: a region of such nodes is reshaped where its values come in and where others read them.
Exact up to float rounding.
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.graph.grouping import connected
from onnxquant.graph.sizes import Shape, reshape_target, static_axes
from onnxquant.graph.tensor_sizes import TensorSizes
from onnxquant.graph.topology import ACTIVATION_FUNCTIONS, Topology
from onnxquant.pass_manager import Pass, PassContext, PassResult

FLOATS = (np.float32, np.float16)
POINTWISE = (ACTIVATION_FUNCTIONS - {"PRelu"}) | {"Add", "Clip", "Div", "Mul", "Pow", "Sqrt", "Sub"}


class LinearToGemm(Pass):
    """Turn MatMul by a constant, with the Add of its bias, into Gemm, for targets that want it."""

    edits: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        if not context.target.placement.gemm:
            return PassResult(False, (f"target {context.target.name} takes linear layers as MatMul",))
        layers = [node for node in graph.nodes if _is_linear(node)]
        if not layers:
            return PassResult(False, ("no MatMul by a constant",))
        topology, rows = Topology(graph), _Rows(graph)
        wise = [position for position, node in enumerate(topology.nodes) if rows.treats_alone(node)]
        done = 0
        for region in connected(topology, wise):
            nodes = [topology.nodes[position] for position in region]
            linear = [node for node in nodes if _is_linear(node)]
            if linear:
                rows.flatten(nodes)
            for node in linear:
                rows.to_gemm(node, nodes)
            done += len(linear)
        rows.insert()
        graph.cleanup()
        notes = [f"{done} linear layers made Gemm"] if done else []
        if left := len(layers) - done:
            notes.append(f"{left} linear layers left as they are: the shapes around them aren't known for every batch")
        return PassResult(done > 0, tuple(notes))


def _is_linear(node: gs.Node) -> bool:
    if node.op != "MatMul" or not isinstance(node.inputs[1], gs.Constant):
        return False
    return len(node.inputs[1].shape) == 2 and node.inputs[1].dtype in FLOATS


class _Rows:
    """Rewrites regions of one graph to work on matrices with a token in each row.

    Args:
        graph: edited.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph, self._sizes, self._unique = graph, TensorSizes(graph), UniqueNames.of_tensors(graph)
        self._kept = {tensor.name for tensor in graph.outputs}  # these values are also read by others than nodes
        self._kept.update(name for inner in graph.subgraphs(recursive=True) for name in inner.tensors())
        self._before: dict[int, list[gs.Node]] = defaultdict(list)
        self._after: dict[int, list[gs.Node]] = defaultdict(list)

    def treats_alone(self, node: gs.Node) -> bool:
        """Whether a node computes every token, a vector along the last axis, from the same one of its inputs."""
        if node.op not in POINTWISE | {"LayerNormalization", "MatMul"} or len(node.outputs) != 1:
            return False
        shape = self._sizes.shape(node.outputs[0])
        if shape is None or len(shape) < 2 or shape[-1].symbol or reshape_target(shape) is None:
            return False
        if node.op == "MatMul":
            source = self._sizes.shape(node.inputs[0])
            return _is_linear(node) and source is not None and source[:-1] == shape[:-1]
        if node.op == "LayerNormalization":
            vectors = all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in node.inputs[1:])
            return vectors and node.attrs.get("axis", -1) in (-1, len(shape) - 1)
        return all(tensor.is_empty() or self._fits(tensor, shape) for tensor in node.inputs)

    def _fits(self, operand: gs.Tensor, shape: Shape) -> bool:
        """Whether an operand has the result's shape, or is a constant that is the same for all tokens."""
        if not isinstance(operand, gs.Constant):
            return self._sizes.shape(operand) == shape
        size = operand.values.size
        per_channel = size == shape[-1].factor and operand.shape[-1:] == (size,)
        return len(operand.shape) <= len(shape) and (size == 1 or per_channel)

    def flatten(self, nodes: list[gs.Node]) -> None:
        """Let a region's nodes, which are connected, work on matrices."""
        members = {id(node) for node in nodes}
        written = {id(node.outputs[0]) for node in nodes}
        matrices: dict[int, gs.Tensor] = {}
        for node in nodes:
            rank = len(self._sizes.shape(node.outputs[0]) or ())
            for position, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant):
                    if rank > 2 and len(tensor.shape) > 1 and not (node.op == "MatMul" and position == 1):
                        node.inputs[position] = self._flat_constant(tensor)
                elif rank > 2 and not tensor.is_empty() and id(tensor) not in written:
                    if id(tensor) not in matrices:
                        matrices[id(tensor)] = self._reshape_before(node, tensor)
                    node.inputs[position] = matrices[id(tensor)]
            if node.op == "LayerNormalization":
                node.attrs["axis"] = -1
        for node in nodes:
            self._restore(node, members)

    def _flat_constant(self, constant: gs.Constant) -> gs.Constant:
        """The values of a constant without the axes that would add some to a matrix."""
        flat = constant.values.reshape(-1)
        if len(constant.outputs) > 1 or constant.name in self._kept:
            return gs.Constant(self._unique(f"{constant.name}_flat"), flat)
        constant.values = flat
        return constant

    def _reshape_before(self, node: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
        """The matrix of what a region reads."""
        channels = (self._sizes.shape(tensor) or ())[-1].factor
        matrix = gs.Variable(self._unique(f"{tensor.name}_rows"), tensor.dtype, [None, channels])
        self._before[id(node)].append(self._reshape(tensor, matrix, [-1, channels]))
        return matrix

    def _restore(self, node: gs.Node, members: set[int]) -> None:
        """Let a node write a matrix, and a Reshape what nodes outside of the region read."""
        tensor = node.outputs[0]
        shape = self._sizes.shape(tensor) or ()
        if len(shape) < 3:
            return
        inside = [reader for reader in tensor.outputs if id(reader) in members]
        if len(inside) == len(tensor.outputs) and tensor.name not in self._kept:
            tensor.shape = [None, shape[-1].factor]
            return
        matrix = gs.Variable(self._unique(f"{tensor.name}_rows"), tensor.dtype, [None, shape[-1].factor])
        replace_uses(tensor, matrix, inside)
        node.outputs = [matrix]
        tensor.shape = tensor.shape or static_axes(shape)
        self._after[id(node)].append(self._reshape(matrix, tensor, reshape_target(shape) or []))

    def _reshape(self, source: gs.Tensor, result: gs.Tensor, target: list[int]) -> gs.Node:
        name = self._unique(f"{result.name}_reshape")
        return gs.Node(
            "Reshape", name, {}, [source, gs.Constant(f"{name}/shape", np.array(target, np.int64))], [result]
        )

    def to_gemm(self, layer: gs.Node, region: list[gs.Node]) -> None:
        """Make Gemm of a MatMul on a matrix, and of the Add of its bias where that follows alone in the region."""
        layer.op = "Gemm"
        product, channels = layer.outputs[0], layer.inputs[1].shape[1]
        add = next((node for node in region if node.op == "Add" and product.outputs == [node]), None)
        bias = None if add is None else next((x for x in add.inputs if isinstance(x, gs.Constant)), None)
        if add is None or bias is None or product.name in self._kept:
            return
        if bias.shape != (channels,):
            values = np.broadcast_to(bias.values.reshape(-1), (channels,)).copy()
            bias = gs.Constant(self._unique(f"{bias.name}_bias"), values)
        layer.inputs.append(bias)
        layer.outputs, add.outputs = list(add.outputs), []

    def insert(self) -> None:
        """Put the new nodes beside those they were made for."""
        self._graph.nodes[:] = [
            each for node in self._graph.nodes for each in (*self._before[id(node)], node, *self._after[id(node)])
        ]
