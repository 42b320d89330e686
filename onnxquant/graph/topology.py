"""Questions about how values flow through a graph, answered by position in topological order.

Analyses read a graph many times and never change it, so everything is computed once: for each node where its data comes
from, where it goes, and the set of all nodes before it. A set of nodes is an integer with one bit a position, which
makes "is a before b" and "what lies between a and b" cheap enough to ask for every pair.

An **activation** is a value that depends on a graph input other than through Shape or Size. Everything else (weights,
and the arithmetic that exporters make of a dynamic batch size) is constant as far as structure goes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

import onnx_graphsurgeon as gs


def _operators(names: str) -> frozenset[str]:
    return frozenset(names.split())


SHAPE_OPS = _operators(
    "Cast Concat DepthToSpace Dropout Expand Flatten Gather Identity Pad Reshape ScatterND Slice SpaceToDepth Split "
    "Squeeze Tile Transpose Unsqueeze"
)
"""Operators that move values about without changing them."""

ARITHMETIC = _operators("Abs Add Clip Div Max Min Mul Neg Pow Reciprocal Sqrt Sub Where")

ACTIVATION_FUNCTIONS = _operators(
    "Celu Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Sigmoid Softplus Softsign Swish Tanh "
    "ThresholdedRelu"
)

NORMS = _operators(
    "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization RMSNormalization"
)

REDUCTIONS = _operators("ReduceL2 ReduceMax ReduceMean ReduceSum")

POOLS = _operators("AveragePool GlobalAveragePool GlobalMaxPool MaxPool ReduceMax ReduceMean")

PRODUCTS = _operators("Einsum Gemm MatMul")

POINTWISE_CHAIN = SHAPE_OPS | ARITHMETIC | ACTIVATION_FUNCTIONS | NORMS | {"Resize"}
"""Operators that keep a value what it is: the same features, moved, scaled, normalised or bent."""


class Topology:
    """A graph's nodes in topological order, and the flow of activations between them.

    Attributes:
        nodes: in the graph's own order where that is topological, so that positions don't depend on names.
        sources: for each node, the positions of the nodes its activation inputs come from, in input order.
        users: for each node, the positions of the nodes that use one of its outputs.
        operands: for each node, the number of its inputs that are activations, graph inputs included.
        before: for each node, the set (one bit a position) of itself and all nodes its activations come from.
        skips: for each residual Add, the operand that goes around the branch: the other one was computed from it.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.nodes = _sorted_nodes(graph)
        self._position = {id(node): position for position, node in enumerate(self.nodes)}
        self._activations = {id(tensor) for tensor in graph.inputs}
        self.sources: list[tuple[int, ...]] = []
        self.operands: list[int] = []
        self.before: list[int] = []
        self.skips: dict[int, gs.Tensor] = {}
        for position, node in enumerate(self.nodes):
            tensors = self.activation_inputs(node)
            producers = [self.producer(tensor) for tensor in tensors]
            self.sources.append(tuple(producer for producer in producers if producer is not None))
            self.operands.append(len(tensors))
            mask = 1 << position
            for source in self.sources[position]:
                mask |= self.before[source]
            self.before.append(mask)
            if (tensors or _has_subgraph(node)) and node.op not in ("Shape", "Size"):
                self._activations.update(id(tensor) for tensor in node.outputs)
            if node.op == "Add" and len(tensors) == 2 and (skip := self._skip(tensors)) is not None:
                self.skips[position] = skip
        self.users = [
            sorted(
                {
                    self._position[id(user)]
                    for tensor in node.outputs
                    for user in tensor.outputs
                    if id(user) in self._position
                }
            )
            for node in self.nodes
        ]

    def _skip(self, tensors: list[gs.Tensor]) -> gs.Tensor | None:
        """The operand that the other one was computed from; None where they are parts of the same value."""
        origins = [self.origin(tensor) for tensor in tensors]
        if origins[0] is not origins[1]:
            for skip, origin, branch in zip(tensors, origins, reversed(tensors), strict=True):
                start, end = self.producer(origin), self.producer(branch)
                if start is not None and end is not None and self.before[end] >> start & 1:
                    return skip
        return None

    def op(self, position: int) -> str:
        return str(self.nodes[position].op)

    def is_activation(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self._activations

    def is_active(self, position: int) -> bool:
        """Whether the node computes an activation (and not a shape or a constant)."""
        return any(self.is_activation(tensor) for tensor in self.nodes[position].outputs)

    def activation_inputs(self, node: gs.Node) -> list[gs.Tensor]:
        return [tensor for tensor in node.inputs if id(tensor) in self._activations]

    def producer(self, tensor: gs.Tensor) -> int | None:
        """The position of the node that computes `tensor`; None for graph inputs and constants."""
        return self._position.get(id(tensor.inputs[0])) if tensor.inputs else None

    def origin(self, tensor: gs.Tensor) -> gs.Tensor:
        """What `tensor` was before the shape operators that lead to it."""
        while (position := self.producer(tensor)) is not None:
            inputs = self.activation_inputs(self.nodes[position])
            if self.op(position) not in SHAPE_OPS or len(inputs) != 1:
                break
            tensor = inputs[0]
        return tensor

    def origins(self, position: int) -> set[int]:
        """The identities of the tensors a node reads, seen through shape operators."""
        return {id(self.origin(tensor)) for tensor in self.activation_inputs(self.nodes[position])}

    def is_product(self, position: int) -> bool:
        """A matrix product of two activations, as in attention."""
        return self._factors(position) == 2

    def is_linear(self, position: int) -> bool:
        """A layer that mixes channels with constant weights: MatMul or Gemm by a constant, or a Conv that isn't
        depthwise.
        """
        if self.op(position) == "Conv":
            return self.operands[position] == 1 and not self.is_depthwise(position)
        return self._factors(position) == 1

    def is_pointwise(self, position: int) -> bool:
        """A linear layer that treats every token or pixel alone."""
        kernel = self.nodes[position].attrs.get("kernel_shape") or self._weight_shape(position)[2:]
        return self.is_linear(position) and (self.op(position) != "Conv" or all(size == 1 for size in kernel))

    def is_depthwise(self, position: int) -> bool:
        shape = self._weight_shape(position)
        return self.op(position) == "Conv" and self.nodes[position].attrs.get("group", 1) > 1 and shape[1:2] == [1]

    def _weight_shape(self, position: int) -> list[int]:
        inputs = self.nodes[position].inputs
        return list(inputs[1].shape or ()) if len(inputs) > 1 else []

    def _factors(self, position: int) -> int:
        """The number of factors of a matrix product that are activations; 0 for any other node."""
        if self.op(position) not in PRODUCTS:
            return 0
        return sum(map(self.is_activation, self.nodes[position].inputs[:2]))

    def passes(self, ops: frozenset[str]) -> Callable[[int], bool]:
        """A test for nodes a search may cross: `ops` and depthwise Convs, but no residual Add, where another branch
        begins.
        """
        return lambda position: position not in self.skips and (self.op(position) in ops or self.is_depthwise(position))

    def nearest(
        self,
        starts: Iterable[int],
        wanted: Callable[[int], bool],
        through: Callable[[int], bool],
        *,
        downstream: bool = False,
        layers: int = 0,
    ) -> tuple[list[int], list[int]]:
        """Search from `starts` (which count too) until a wanted node on every path.

        Args:
            starts: positions to search from.
            wanted: where a path ends well.
            through: what a path may cross on its way.
            downstream: search with the flow of data, and not against it.
            layers: number of linear layers that each path may cross although `through` doesn't allow it.

        Returns:
            The wanted nodes found, and the nodes that blocked a path; both sorted.
        """
        found, blocked = set(), set()
        pending = [(start, layers) for start in starts]
        seen = set(pending)
        while pending:
            position, left = pending.pop()
            if wanted(position):
                found.add(position)
                continue
            if not through(position):
                if not left or not self.is_linear(position):
                    blocked.add(position)
                    continue
                left -= 1
            steps = self.users[position] if downstream else self.sources[position]
            for step in steps:
                if (step, left) not in seen and self.is_active(step):
                    seen.add((step, left))
                    pending.append((step, left))
        return sorted(found), sorted(blocked)

    def between(self, firsts: Iterable[int], lasts: Iterable[int]) -> set[int]:
        """Every node on a path from one of `firsts` to one of `lasts`, both included."""
        roots = mask(firsts)
        reached = 0
        for last in lasts:
            reached |= self.before[last]
        return {position for position in positions(reached) if self.before[position] & roots}


def mask(chosen: Iterable[int]) -> int:
    """A set of positions as an integer."""
    bits = 0
    for position in chosen:
        bits |= 1 << position
    return bits


def positions(bits: int) -> Iterator[int]:
    """The inverse of `mask`, in ascending order."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _has_subgraph(node: gs.Node) -> bool:
    """If, Loop and Scan read outer values without listing them as inputs: what they compute counts as an activation."""
    return any(isinstance(value, gs.Graph) for value in node.attrs.values())


def _sorted_nodes(graph: gs.Graph) -> list[gs.Node]:
    """Topological order, as close to the graph's own order as possible."""
    index = {id(node): position for position, node in enumerate(graph.nodes)}
    users: list[list[int]] = [[] for _ in graph.nodes]
    waiting = []
    for position, node in enumerate(graph.nodes):
        producers = {index[id(p)] for tensor in node.inputs for p in tensor.inputs if id(p) in index}
        waiting.append(len(producers))
        for producer in producers:
            users[producer].append(position)
    ready = [position for position, count in enumerate(waiting) if not count]
    ordered = []
    while ready:
        position = heapq.heappop(ready)
        ordered.append(graph.nodes[position])
        for user in users[position]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    return ordered
