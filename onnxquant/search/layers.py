"""The layers of a graph as matrix products, and pieces of them to try quantizers on.

What a convolution computes at a place is the product of a patch of its input and its weights; a linear layer does the
same with a token, and the products of attention are such products already. So one form serves them all:

    O = left @ right        left (G, P, K), right (G, K, O)

with G the groups of a convolution, or (image, head) pairs of attention; P places, K taps, O outputs. A search looks at
some places of each image only: with a thousand in all, the sums it compares change little.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxquant.graph.convolution import output_channel_axis

Piece: TypeAlias = tuple[Tensor, ...]
"""Left, right and gradient of some places of one batch; without right where that is the layer's weights."""


@dataclass(frozen=True)
class Product:
    """Pieces of a layer's product, over the calibration data.

    Attributes:
        left: (G, P, K), what the layer reads at the places looked at.
        right: (G, K, O), its weights or the other activation.
        gradient: (G, P, O), dL/dO there.
        output: (G, P, O).
    """

    left: Tensor
    right: Tensor
    gradient: Tensor
    output: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", self.left @ self.right)


class Layer(ABC):
    """A node whose product can be looked at.

    Attributes:
        node: in the graph.
        left: name of the activation on the left.
        right: name of the weight, or of the activation, on the right.
        output: name of what it computes.
    """

    def __init__(self, node: gs.Node) -> None:
        self.node = node
        self.left, self.right = (tensor.name for tensor in node.inputs[:2])
        self.output = node.outputs[0].name

    @property
    def activations(self) -> list[str]:
        """Names of those it reads."""
        return [self.left]

    @abstractmethod
    def piece(self, values: Mapping[str, Tensor], gradient: Tensor, count: int, places: np.random.Generator) -> Piece:
        """Some of the places of one batch.

        Args:
            values: of the activations, float32, as the graph has them.
            gradient: dL/dO, of the output.
            count: of places, at most.
            places: says which.
        """

    @abstractmethod
    def product(self, pieces: Sequence[Piece]) -> Product:
        """The pieces put together."""


class Weighted(Layer):
    """A layer with constant weights: a row of them for each output channel.

    Attributes:
        groups: G.
        weights: (M, K).
    """

    def __init__(self, node: gs.Node, groups: int = 1) -> None:
        super().__init__(node)
        self.groups = groups
        weight = torch.from_numpy(np.require(node.inputs[1].values, np.float32, "W"))  # the model's own memory, mostly
        self.weights = weight.flatten(1) if output_channel_axis(node) == 0 else weight.T

    def as_right(self, rows: Tensor) -> Tensor:
        """Rows of weights (M, K) as the right of the product (G, K, O)."""
        return rows.reshape(self.groups, -1, rows.shape[1]).transpose(1, 2)

    def as_weight(self, rows: Tensor) -> Tensor:
        """Rows of weights (M, K) in the shape that the node has them in."""
        shape = tuple(self.node.inputs[1].shape)
        return rows.reshape(shape) if output_channel_axis(self.node) == 0 else rows.T

    def product(self, pieces: Sequence[Piece]) -> Product:
        left, gradient = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
        return Product(left, self.as_right(self.weights.to(left.device)), gradient)

    def _grouped(self, rows: Tensor) -> Tensor:
        """(P, G X) as (G, P, X)."""
        return rows.reshape(len(rows), self.groups, -1).transpose(0, 1)

    def _piece(self, left: Tensor, gradient: Tensor, count: int, places: np.random.Generator) -> Piece:
        chosen = _some(len(left), count, places)
        return self._grouped(left[chosen]), self._grouped(gradient[chosen])


class Linear(Weighted):
    """Gemm, or MatMul with a constant: every token is a place."""

    def piece(self, values: Mapping[str, Tensor], gradient: Tensor, count: int, places: np.random.Generator) -> Piece:
        return self._piece(values[self.left].flatten(0, -2), gradient.flatten(0, -2), count, places)


class Convolution(Weighted):
    """Conv in two dimensions: every pixel of the output is a place, and reads a patch."""

    def piece(self, values: Mapping[str, Tensor], gradient: Tensor, count: int, places: np.random.Generator) -> Piece:
        attributes = self.node.attrs
        top, beside, bottom, behind = attributes.get("pads", [0, 0, 0, 0])
        patches = F.unfold(
            F.pad(values[self.left], (beside, behind, top, bottom)),
            tuple(self.node.inputs[1].shape[2:]),
            dilation=tuple(attributes.get("dilations", [1, 1])),
            stride=tuple(attributes.get("strides", [1, 1])),
        )  # (N, C k k, positions)
        return self._piece(_by_place(patches), _by_place(gradient.flatten(2)), count, places)


class ActivationProduct(Layer):
    """MatMul of two activations, as in attention."""

    PAIRS = 4
    """(image, head) pairs of a batch that are looked at."""

    @property
    def activations(self) -> list[str]:
        return [self.left, self.right]

    def piece(self, values: Mapping[str, Tensor], gradient: Tensor, count: int, places: np.random.Generator) -> Piece:
        parts, outer = (values[self.left], values[self.right], gradient), gradient.shape[:-2]
        left, right, gradient = (part.expand(*outer, *part.shape[-2:]).reshape(-1, *part.shape[-2:]) for part in parts)
        pairs = _some(len(left), self.PAIRS, places)
        chosen = _some(left.shape[1], max(1, count // len(pairs)), places)
        return left[pairs][:, chosen], right[pairs], gradient[pairs][:, chosen]

    def product(self, pieces: Sequence[Piece]) -> Product:
        return Product(*map(torch.cat, zip(*pieces, strict=True)))


def layer_of(node: gs.Node) -> Layer | None:
    """The layer that a node is; None where its product has another form."""
    if node.op not in ("Conv", "Gemm", "MatMul"):
        return None
    attributes, weight = node.attrs, node.inputs[1]
    if not isinstance(weight, gs.Constant):
        return ActivationProduct(node) if node.op == "MatMul" else None
    if node.op == "Conv":
        stated = attributes.get("auto_pad", "NOTSET") == "NOTSET"
        return Convolution(node, attributes.get("group", 1)) if stated and len(weight.shape) == 4 else None
    plain = attributes.get("alpha", 1.0) == 1 and not attributes.get("transA", 0)
    return Linear(node) if plain and len(weight.shape) == 2 else None


def _by_place(values: Tensor) -> Tensor:
    """(N, X, positions) as (N positions, X)."""
    return values.transpose(1, 2).flatten(0, 1)


def _some(total: int, count: int, places: np.random.Generator) -> Tensor:
    """Positions of `count` of `total`, in order; all where there are no more."""
    if total <= count:
        return torch.arange(total)
    return torch.from_numpy(np.sort(places.choice(total, count, replace=False)))
