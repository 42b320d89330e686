"""The sizes of a graph's tensors, proven for every batch size at once.

Shape inference in onnx gives a new symbol to what exporters compute from the batch size (``4 * batch``), and so loses
how sizes depend on each other. Here they are followed through the operators that networks handle shapes with. A Reshape
keeps the number of values: a size that is computed in a way not followed here is still known where it is the only
unknown one of its shape. Sizes are taken to be positive.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxquant.graph.sizes import ONE, Shape, Size, Sizes, complete, product
from onnxquant.graph.topology import ACTIVATION_FUNCTIONS, ARITHMETIC, NORMS, Topology

SAME_SHAPE = (
    ACTIVATION_FUNCTIONS
    | NORMS
    | {*("Cast", "DequantizeLinear", "Dropout", "Identity", "LogSoftmax", "QuantizeLinear", "Softmax")}
)
"""Operators whose first output has the shape of their first input."""

CONVOLUTIONS_AND_POOLS = frozenset(
    {"AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
)
RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})

INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
MOST_VALUES = 16
"""Integers that are followed in one tensor: shapes have fewer."""


def permutation(transpose: gs.Node, rank: int) -> list[int]:
    """The axes of a Transpose's input in the order of its output."""
    return list(transpose.attrs.get("perm") or reversed(range(rank)))


class TensorSizes:
    """The sizes of all tensors of a graph.

    Args:
        graph: with the shapes that shape inference found; not changed.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._symbols = {axis for tensor in graph.inputs for axis in tensor.shape or () if isinstance(axis, str)}
        self._sizes: dict[int, Sizes | None] = {}
        self._values: dict[int, Sizes] = {}
        for tensor in graph.inputs:
            if tensor.shape is not None:  # an axis without a name is a symbol of its own
                named = [axis or f"{tensor.name}[{position}]" for position, axis in enumerate(tensor.shape)]
                self._sizes[id(tensor)] = tuple(Size(1, a) if isinstance(a, str) else Size(a) for a in named)
        for node in Topology(graph).nodes:
            for position, tensor in enumerate(node.outputs):
                self._sizes[id(tensor)] = _merged(self._inferred(tensor), self._rule(node, position))
            values = self._computed(node)
            sizes = self.of(node.outputs[0]) if node.outputs else None
            if values is not None and len(values) <= MOST_VALUES and sizes is not None and len(sizes) < 2:
                self._values[id(node.outputs[0])] = values

    def of(self, tensor: gs.Tensor) -> Sizes | None:
        """The sizes of `tensor`; None where not even their number is known."""
        return tuple(map(Size, tensor.shape)) if isinstance(tensor, gs.Constant) else self._sizes.get(id(tensor))

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """The sizes of `tensor`; None unless all are known."""
        return complete(self.of(tensor))

    def _inferred(self, tensor: gs.Tensor) -> Sizes | None:
        """What shape inference says."""
        if tensor.shape is None:
            return None
        known = (axis if not isinstance(axis, str) or axis in self._symbols else None for axis in tensor.shape)
        return tuple(Size(1, axis) if isinstance(axis, str) else None if axis is None else Size(axis) for axis in known)

    def _rule(self, node: gs.Node, position: int) -> Sizes | None:
        """What the operator says of an output beyond shape inference."""
        if node.op in ARITHMETIC | {"Sum"}:
            return _broadcast([self.of(tensor) for tensor in node.inputs if not tensor.is_empty()])
        sizes = self.of(node.inputs[0]) if node.inputs else None
        if sizes is None:
            return None
        if node.op in SAME_SHAPE and position == 0:
            return sizes
        if node.op in CONVOLUTIONS_AND_POOLS and position == 0:
            pointwise = node.op == "Conv" and _is_pointwise(node)
            return (sizes[0], None, *(size if pointwise else None for size in sizes[2:]))
        if node.op == "Transpose":
            return tuple(sizes[axis] for axis in permutation(node, len(sizes)))
        if node.op in RESHAPES:
            return self._reshaped(node, sizes)
        if node.op in ("Pad", "Slice", "Split"):
            return _cut(node, sizes, position)
        if node.op == "Gather" and (indices := self.of(node.inputs[1])) is not None:
            axis = node.attrs.get("axis", 0) % len(sizes)
            return (*sizes[:axis], *indices, *sizes[axis + 1 :])
        if node.op == "MatMul" and (other := self.of(node.inputs[1])) is not None and min(len(sizes), len(other)) > 1:
            stacked = _broadcast([sizes[:-2], other[:-2]])
            return None if stacked is None else (*stacked, sizes[-2], other[-1])
        if node.op == "Gemm":
            return sizes[1 if node.attrs.get("transA", 0) else 0], None
        if node.op == "Concat":
            known = [shape for tensor in node.inputs if (shape := self.of(tensor)) is not None]
            axis = node.attrs["axis"] % len(sizes)
            joined = [next(filter(None, column), None) for column in zip(*known, strict=True)]
            lengths = [size.factor for shape in known if (size := shape[axis]) is not None and not size.symbol]
            joined[axis] = Size(sum(lengths)) if len(lengths) == len(node.inputs) else None
            return tuple(joined)
        return None

    def _reshaped(self, node: gs.Node, sizes: Sizes) -> Sizes | None:
        if node.op == "Flatten":
            axis = node.attrs.get("axis", 1)
            return product(sizes[:axis]), product(sizes[axis:])
        if node.op == "Reshape":
            target = self._read(node.inputs[1])
            return None if target is None else _reshape(sizes, target, bool(node.attrs.get("allowzero", 0)))
        axes = _constant(node, 1)
        if node.op == "Squeeze":
            gone = None if axes is None else {axis % len(sizes) for axis in axes}
            return None if gone is None else tuple(size for axis, size in enumerate(sizes) if axis not in gone)
        rank = len(sizes) + len(axes or ())
        new, old = {axis % rank for axis in axes or ()}, iter(sizes)
        return None if axes is None else tuple(ONE if axis in new else next(old) for axis in range(rank))

    def _read(self, tensor: gs.Tensor) -> Sizes | None:
        """The integers that a tensor of rank 0 or 1 holds; None where not even their number is known."""
        if isinstance(tensor, gs.Constant):
            small = tensor.values.size <= MOST_VALUES and np.issubdtype(tensor.dtype, np.integer)
            return tuple(Size(int(value)) for value in tensor.values.reshape(-1)) if small else None
        count = product(self.of(tensor) or (None,))
        unknown = None if count is None or count.symbol or count.factor > MOST_VALUES else (None,) * count.factor
        return self._values.get(id(tensor), unknown)

    def _computed(self, node: gs.Node) -> Sizes | None:
        """The integers that a node computes from sizes, as far as they are followed."""
        if node.op == "Shape":
            sizes = self.of(node.inputs[0])
            return None if sizes is None else sizes[node.attrs.get("start", 0) : node.attrs.get("end", len(sizes))]
        if node.op == "Concat" and node.attrs["axis"] in (0, -1):
            parts = [self._read(tensor) for tensor in node.inputs if len(self.of(tensor) or (0, 0)) == 1]
            whole = len(parts) == len(node.inputs) and None not in parts
            return tuple(itertools.chain.from_iterable(part or () for part in parts)) if whole else None
        if node.op in ("Div", "Mul"):
            left, right = (self._read(tensor) for tensor in node.inputs)
            if left is None or right is None or not len(left) == len(right) == 1:
                return None
            if left[0] is None or right[0] is None:
                return (None,)
            return (left[0].times(right[0]) if node.op == "Mul" else left[0].over(right[0]),)
        data = self._values.get(id(node.inputs[0])) if node.inputs else None
        if data is None:
            return None
        if node.op in ("Squeeze", "Unsqueeze", "Identity") or (node.op == "Cast" and node.attrs["to"] in INTEGERS):
            return data
        constants = [_constant(node, position) for position in range(1, len(node.inputs))]
        if node.op == "Gather" and constants[0] is not None and max(constants[0], default=0) < len(data):
            return tuple(data[index] for index in constants[0])
        if node.op == "Slice" and None not in constants:
            start, end, *rest = (value[0] for value in constants if value)
            return data[start : end : rest[1] if len(rest) > 1 else 1]
        return None


def _merged(inferred: Sizes | None, found: Sizes | None) -> Sizes | None:
    """Numbers that shape inference found, then what a rule found, then what else shape inference says."""
    if inferred is None or found is None or len(inferred) != len(found):
        return found if inferred is None else inferred
    pairs = zip(inferred, found, strict=True)
    return tuple(a if b is None or (a is not None and not a.symbol) else b for a, b in pairs)


def _broadcast(shapes: Sequence[Sizes | None]) -> Sizes | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known), default=0)
    result: list[Size | None] = []
    for column in zip(*((ONE,) * (rank - len(shape)) + shape for shape in known), strict=True):
        others = {size for size in column if size != ONE}
        number = next((size for size in column if size is not None and not size.symbol and size != ONE), None)
        # A number is what the others have to be, or 1. Of two others each could be the 1.
        result.append(number or (others.pop() if len(others) == 1 else None if others else ONE))
    return tuple(result)


def _reshape(sizes: Sizes, target: Sizes, allow_zero: bool) -> Sizes | None:
    """The sizes a Reshape writes: 0 copies one of the input's, -1 stands for what is left."""
    if allow_zero and Size(0) in target:
        return None
    copied = [sizes[axis] if size == Size(0) and axis < len(sizes) else size for axis, size in enumerate(target)]
    result = [None if size == Size(-1) else size for size in copied]
    if result.count(None) == 1:
        volume, rest = product(sizes), product(size for size in result if size is not None)
        result[result.index(None)] = None if volume is None or rest is None else volume.over(rest)
    return tuple(result)


def _cut(node: gs.Node, sizes: Sizes, position: int) -> Sizes | None:
    """What Pad, Slice and Split leave of each axis."""
    result, constants = list(sizes), [_constant(node, at) for at in range(1, len(node.inputs))]
    if node.op == "Split":
        parts = constants[0] if constants else None
        result[node.attrs.get("axis", 0)] = Size(parts[position]) if parts else None
    elif node.op == "Pad":
        pads = constants[0] if len(node.inputs) < 4 else None  # the fourth names the axes
        if pads is None or len(pads) != 2 * len(sizes):
            return None
        grown = [begin + end for begin, end in zip(pads[: len(sizes)], pads[len(sizes) :], strict=True)]
        result = [
            size if not more else None if size is None or size.symbol else Size(size.factor + more)
            for size, more in zip(sizes, grown, strict=True)
        ]
    elif len(constants) > 2 and None not in constants:
        starts, ends, axes, *rest = (values or [] for values in constants)
        for start, end, axis, step in zip(starts, ends, axes, rest[0] if rest else [1] * len(axes), strict=True):
            size = sizes[axis]
            whole = size is not None and not size.symbol
            result[axis] = Size(len(range(size.factor)[start:end:step])) if size is not None and whole else None
    else:
        return None
    return tuple(result)


def _is_pointwise(conv: gs.Node) -> bool:
    """Whether it keeps the sizes of all spatial axes because its kernel has one value."""
    if not isinstance(conv.inputs[1], gs.Constant):
        return False
    moves = [*(size - 1 for size in conv.inputs[1].shape[2:]), *conv.attrs.get("pads", [])]
    plain = conv.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return plain and not any(moves) and {*conv.attrs.get("strides", [])} <= {1}


def _constant(node: gs.Node, position: int) -> list[int] | None:
    """The integers that an input holds; None where it isn't a constant or isn't there."""
    tensor = node.inputs[position] if len(node.inputs) > position else None
    return [int(value) for value in tensor.values.reshape(-1)] if isinstance(tensor, gs.Constant) else None
