"""Where the channels of an activation can be divided by a scale each, and the weights of its readers multiplied by it.

What writes an activation takes the division if it is a norm's scale and shift, or a weighted layer with nothing behind
it but functions that only scale with their input. A reader takes the multiplication if it is a weighted layer.

Where there is no such function, and the readers pad nothing, a shift can be taken off each channel as well: what writes
the activation has a bias for it, and the readers' biases make up for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.graph.bias import add_to_bias, takes_bias, weight_sums
from onnxquant.graph.convolution import CONVOLUTIONS, LINEAR, WEIGHTED, from_rows, input_channels, tap_mean, to_rows
from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.graph.topology import ACTIVATION_FUNCTIONS, ARITHMETIC, Topology

POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
HOMOGENEOUS = POOLS | {"LeakyRelu", "PRelu", "Relu"}
"""Functions of one channel with f(s x) = s f(x) for every s > 0."""

FLOATS = (np.float32, np.float16)


@dataclass(frozen=True)
class Vector:
    """A constant with one number a channel: the input of `node` at `position`. Other nodes may read it too."""

    node: gs.Node
    position: int

    @property
    def values(self) -> NDArray[np.float64]:
        """Shape (C,)."""
        flat: NDArray[np.float64] = self.node.inputs[self.position].values.reshape(-1).astype(np.float64)
        return flat


@dataclass(frozen=True)
class Writer:
    """What the channels of an activation come from.

    Attributes:
        layer: a weighted layer; None behind a norm.
        scale: of a norm; None behind a layer.
        shifts: and biases, from the first to the last.
        direct: whether nothing lies between them and the activation.
    """

    layer: gs.Node | None = None
    scale: Vector | None = None
    shifts: tuple[Vector, ...] = ()
    direct: bool = True


@dataclass(frozen=True)
class Place:
    """An activation whose channels can be scaled.

    Attributes:
        tensor: the activation.
        channels: C.
        readers: weighted layers that read it and take the multiplication.
        writer: what its channels come from.
        folds: whether the writer takes the division, and all readers take part; else a Mul is needed.
        shifts: whether a shift folds as well.
    """

    tensor: gs.Variable
    channels: int
    readers: list[gs.Node]
    writer: Writer
    folds: bool
    shifts: bool = False


class ChannelScales:
    """Finds the places of one graph and applies scales to them.

    Args:
        graph: in canonical form.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph, self._topology, self._unique = graph, Topology(graph), UniqueNames.of_tensors(graph)
        self._kept = {tensor.name for tensor in graph.outputs}  # these values are also read by others than nodes
        self._kept.update(name for inner in graph.subgraphs(recursive=True) for name in inner.tensors())

    def place(self, tensor: gs.Tensor) -> Place | None:
        """`tensor` as one to scale; None where its channels don't come from one writer or no reader takes a scale."""
        readers = _readers(tensor)
        takers = [reader for reader in readers if is_layer(reader) and reader.inputs[0] is tensor]
        layouts = {(_channel_axis(reader), input_channels(reader)) for reader in takers}
        if len(layouts) != 1:
            return None
        axis, channels = layouts.pop()
        if len(takers) == len(readers) and (writer := self._writer(tensor, axis, channels)) is not None:
            shifts = writer.direct and bool(writer.shifts) and all(_takes_shift(reader, tensor) for reader in takers)
            return Place(tensor, channels, takers, writer, folds=True, shifts=shifts)
        depthwise = [reader for reader in takers if is_depthwise(reader)]
        layer = self._layer_before(tensor) if depthwise else None
        writer = None if layer is None else _of_layer(layer, axis, channels)
        return None if writer is None else Place(tensor, channels, depthwise, writer, folds=False)

    def apply(self, place: Place, scales: NDArray[np.float32], shifts: NDArray[np.float32] | None = None) -> bool:
        """Divide the channels and multiply the readers' weights.

        Args:
            place: from `place`.
            scales: positive, float32 (C,).
            shifts: taken off the divided channels, float32 (C,); None for none. Needs ``place.shifts``.

        Returns:
            False, and nothing is done, where a weight or bias would leave the range of its type.
        """
        wide = scales.astype(np.float64)
        changed = [(reader, 1, reader.inputs[1].values * tap_mean(reader, wide)) for reader in place.readers]
        biases: list[tuple[gs.Node, NDArray[np.floating]]] = []
        if shifts is not None:
            biases = [(node, weight_sums(node, values * tap_mean(node, shifts))) for node, _, values in changed]
        if place.folds:
            vectors = [vector for vector in (place.writer.scale, *place.writer.shifts) if vector is not None]
            changed += [(vector.node, vector.position, vector.values / wide) for vector in vectors]
            if shifts is not None:
                changed[-1] = (*changed[-1][:2], changed[-1][2] - shifts)
            if (layer := place.writer.layer) is not None:
                rows = to_rows(layer, layer.inputs[1].values.astype(np.float64)) / wide[:, None]
                changed.append((layer, 1, from_rows(layer, rows)))
        with np.errstate(over="ignore"):
            cast = [(node, at, values.astype(node.inputs[at].dtype)) for node, at, values in changed]
            added = [bias.astype(node.inputs[1].dtype) for node, bias in biases]
        if not all(np.isfinite(values).all() for values in (*added, *(values for _, _, values in cast))):
            return False
        for node, position, values in cast:
            self._replace(node, position, values)
        for node, bias in biases:
            behind = add_to_bias(self._graph, node, bias, self._unique)
            if behind is not None:
                self._graph.nodes.insert(self._graph.nodes.index(node) + 1, behind)
        if not place.folds:
            self._multiply(place, 1 / wide)
        return True

    def _replace(self, node: gs.Node, position: int, values: NDArray[np.floating]) -> None:
        """Give a node other values for a constant of the same size, and leave them as they are for everybody else."""
        constant = node.inputs[position]
        values = values.reshape(constant.shape)
        if len(constant.outputs) == 1:
            constant.values = values
        else:
            node.inputs[position] = gs.Constant(self._unique(f"{constant.name}_scaled"), values)

    def _multiply(self, place: Place, factors: NDArray[np.float64]) -> None:
        tensor, weight = place.tensor, place.readers[0].inputs[1]
        shape = (-1, *[1] * (len(weight.shape) - 2))
        constant = gs.Constant(self._unique(f"{tensor.name}_factors"), factors.astype(weight.dtype).reshape(shape))
        scaled = gs.Variable(self._unique(f"{tensor.name}_equalized"), weight.dtype, tensor.shape)
        first = min(self._graph.nodes.index(reader) for reader in place.readers)
        replace_uses(tensor, scaled, place.readers)
        self._graph.nodes.insert(first, gs.Node("Mul", scaled.name, {}, [tensor, constant], [scaled]))

    def _writer(self, tensor: gs.Tensor, axis: int, channels: int) -> Writer | None:
        """What takes the division of `tensor`, whose channels lie on `axis` (counted from the end)."""
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or tensor.name in self._kept or tensor is not node.outputs[0]:
            return None
        if is_layer(node):
            return _of_layer(node, axis, channels)
        if node.op == "LayerNormalization":
            scale, *shift = (Vector(node, at) for at, given in enumerate(node.inputs) if at and not given.is_empty())
            last = axis == -1 and node.attrs.get("axis", -1) in (-1, len(tensor.shape or ()) - 1)
            fits = all(_is_vector(node.inputs[vector.position], axis, channels) for vector in (scale, *shift))
            return Writer(scale=scale, shifts=tuple(shift)) if last and fits else None
        if node.op in ("Add", "Mul"):
            at = next((at for at, operand in enumerate(node.inputs) if _is_vector(operand, axis, channels)), None)
            if at is None or node.op == "Mul":
                return None if at is None else Writer(scale=Vector(node, at))
            inner = self._inner(node.inputs[1 - at], axis, channels)
            return None if inner is None else replace(inner, shifts=(*inner.shifts, Vector(node, at)))
        if node.op in HOMOGENEOUS and not (node.op in POOLS and axis == -1):
            inner = self._inner(node.inputs[0], axis, channels)
            return None if inner is None else replace(inner, direct=False)
        return None

    def _inner(self, tensor: gs.Tensor, axis: int, channels: int) -> Writer | None:
        """The writer of a value on the way, which nobody else may read."""
        return self._writer(tensor, axis, channels) if len(_readers(tensor)) == 1 else None

    def _layer_before(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one weighted layer that an activation function, whatever nodes it is made of, computed `tensor` from."""
        nodes, start = self._topology.nodes, self._topology.producer(tensor)
        if start is None:
            return None
        through = self._topology.passes(ACTIVATION_FUNCTIONS | ARITHMETIC)
        found, blocked = self._topology.nearest([start], lambda p: is_layer(nodes[p]), through)
        return nodes[found[0]] if len(found) == 1 and not blocked else None


def is_layer(node: gs.Node) -> bool:
    """Whether it is a weighted layer with a constant float weight of its own."""
    if node.op not in WEIGHTED or not isinstance(node.inputs[1], gs.Constant) or len(node.inputs[1].outputs) != 1:
        return False
    weight = node.inputs[1]
    plain = node.op in CONVOLUTIONS or (len(weight.shape) == 2 and not node.attrs.get("transA", 0))
    return bool(plain and weight.dtype in FLOATS and np.isfinite(weight.values).all())


def is_depthwise(layer: gs.Node) -> bool:
    """Whether each output channel of a weighted layer comes from one input channel."""
    return bool(layer.op == "Conv" and layer.attrs.get("group", 1) == input_channels(layer) > 1)


def _takes_shift(reader: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether the bias of a weighted layer can make up for a shift: zeros that it pads wouldn't be shifted."""
    return takes_bias(reader, tensor) and not any(reader.attrs.get("pads", ()))


def _of_layer(layer: gs.Node, axis: int, channels: int) -> Writer | None:
    bias = layer.inputs[2] if len(layer.inputs) > 2 and not layer.inputs[2].is_empty() else None
    if _channel_axis(layer) != axis or len(to_rows(layer, layer.inputs[1].values)) != channels:
        return None
    if bias is not None and not _is_vector(bias, -1, channels):
        return None
    return Writer(layer, shifts=() if bias is None else (Vector(layer, 2),))


def _readers(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that read the value, and not its shape alone."""
    return [node for node in tensor.outputs if node.op not in ("Shape", "Size")]


def _channel_axis(layer: gs.Node) -> int:
    """The axis of what a layer reads and writes that its channels lie on, counted from the end."""
    return -1 if layer.op in LINEAR else 1 - len(layer.inputs[1].shape)


def _is_vector(tensor: gs.Tensor, axis: int, channels: int) -> bool:
    """Whether it is a float constant with one number a channel."""
    if not isinstance(tensor, gs.Constant) or tensor.dtype not in FLOATS:
        return False
    return len(tensor.shape) >= -axis and tensor.shape[axis] == channels == tensor.values.size
