"""What quantizers cost at the output of a layer, of a bridge, or of a tensor itself (Q-HyViT, Eqs. 5 and 6).

Σ (Ô - O)² (∂L/∂O)²        "hessian"; with ∂L/∂O = 1 "mse"
1 - cos(Ô, O)              "cosine" (EasyQuant)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxquant.graph.convolution import to_rows
from onnxquant.graph.weight_codes import weight_values
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.search.layers import Layer, Product, Weighted
from onnxquant.search.simulate import transform
from onnxquant.torch_graph import Gradient, TorchGraph

Metric = Literal["hessian", "mse", "cosine"]

State: TypeAlias = Mapping[str, PlanEntry]
"""The plan so far, by tensor."""


class Objective(Protocol):
    """Something that quantizers have a cost for."""

    def errors(self, state: State) -> Tensor:
        """The cost with these quantizers: (1,), or (M,), one an output channel of a layer with weights."""
        ...

    def release(self) -> None:
        """Give back what was read for `errors`, which reads it again when it needs to."""


class OfLayer:
    """What a layer computes, at the places looked at.

    Args:
        layer: see there.
        read: gives its product.
        metric: see the module.
    """

    def __init__(self, layer: Layer, read: Callable[[], Product], metric: Metric) -> None:
        self.layer, self._read, self._metric = layer, read, metric
        self._seen: tuple[Product, Tensor] | None = None
        self._operands: dict[str, tuple[PlanEntry | None, Tensor]] = {}

    def errors(self, state: State) -> Tensor:
        if self._seen is None:
            product = self._read()
            self._seen = product, _weights(product.gradient, self._metric)
        product, weights = self._seen
        output = self._operand(self.layer.left, product.left, state) @ self._right(product, state)
        if self._metric == "cosine":
            return _error(output, product.output, weights, self._metric)
        errors = (output - product.output).square_().mul_(weights).sum(1).flatten()
        return errors if isinstance(self.layer, Weighted) else errors.sum().reshape(1)

    def release(self) -> None:
        self._seen = None
        self._operands.clear()

    def _right(self, product: Product, state: State) -> Tensor:
        if not isinstance(self.layer, Weighted):
            return self._operand(self.layer.right, product.right, state)
        entry = state.get(self.layer.right)
        if self._changed("right", entry):
            rows = self.layer.weights if entry is None else quantized_weights(self.layer, entry)
            self._operands["right"] = entry, self.layer.as_right(rows.to(product.left.device))
        return self._operands["right"][1]

    def _operand(self, name: str, value: Tensor, state: State) -> Tensor:
        entry = state.get(name)
        if self._changed(name, entry):
            self._operands[name] = entry, quantized_for(self.layer.node, value, entry)
        return self._operands[name][1]

    def _changed(self, operand: str, entry: PlanEntry | None) -> bool:
        """Whether the operand has to be quantized anew; the other of a layer's two mostly hasn't."""
        return operand not in self._operands or self._operands[operand][0] is not entry


class OfBridge:
    """What the last layer of a bridge computes, on whole images, with all layers before it composed.

    Args:
        graph: of the float model.
        layers: of the bridge, in order, all with weights.
        values: of the tensors that the bridge's nodes read from outside, and of its output: one an image.
        metric: see the module.
    """

    def __init__(
        self, graph: TorchGraph, layers: Sequence[Weighted], values: Mapping[str, list[Gradient]], metric: Metric
    ) -> None:
        self._graph, self._layers, self._metric = graph, layers, metric
        self._end = layers[-1].output
        self._outputs = values[self._end]
        self._weights = [_weights(each.gradient, metric) for each in self._outputs]
        self._feeds = [
            {name: each[image].value for name, each in values.items() if name != self._end}
            for image in range(len(self._outputs))
        ]

    def errors(self, state: State) -> Tensor:
        changed = {}
        for layer in self._layers:
            if (entry := state.get(layer.right)) is not None:
                changed[layer.right] = layer.as_weight(quantized_weights(layer, entry))
        transforms = {
            layer.left: lambda value, layer=layer: quantized_for(layer.node, value, state.get(layer.left))
            for layer in self._layers
            if layer.left in state
        }
        total = torch.zeros(1, device=self._graph.device)
        with torch.no_grad():
            for feeds, expected, weights in zip(self._feeds, self._outputs, self._weights, strict=True):
                output = self._graph.run({**feeds, **changed}, [self._end], transforms)[self._end]
                total += _error(output, expected.value, weights, self._metric)
        return total

    def release(self) -> None:
        """Nothing: a few whole images are little."""


class OfValue:
    """A tensor itself, where no layer's product shows what its quantizer does.

    Args:
        tensor: its name.
        read: gives its values.
        metric: see the module.
    """

    def __init__(self, tensor: str, read: Callable[[], Sequence[Gradient]], metric: Metric) -> None:
        self._tensor, self._read, self._metric = tensor, read, metric
        self._seen: tuple[Tensor, Tensor] | None = None

    def errors(self, state: State) -> Tensor:
        if self._seen is None:
            values = self._read()
            gradient = torch.cat([each.gradient.flatten() for each in values])
            self._seen = torch.cat([each.value.flatten() for each in values]), _weights(gradient, self._metric)
        value, weights = self._seen
        return _error(transform(state[self._tensor])(value), value, weights, self._metric)

    def release(self) -> None:
        self._seen = None


def quantized_weights(layer: Weighted, entry: PlanEntry) -> Tensor:
    """The values of the codes that a layer's weights become: (M, K), as `Weighted.weights`."""
    if not isinstance(entry.quantizer, UniformQuantizer):
        return layer.weights
    if entry.rounding is None or entry.rounding.mode == "nearest":
        by_row = entry.quantizer if entry.quantizer.axis is None else replace(entry.quantizer, axis=0)
        quantized: Tensor = by_row.fake_quantize(layer.weights)
        return quantized
    weight = layer.node.inputs[1]
    values = weight_values(weight, entry, entry.quantizer)
    return torch.from_numpy(np.array(to_rows(layer.node, values), np.float32))


def quantized_for(node: gs.Node, value: Tensor, entry: PlanEntry | None) -> Tensor:
    """What a node reads of an activation: its codes' values, if the plan says so."""
    if entry is None or (entry.consumers is not None and node.name not in entry.consumers):
        return value
    if isinstance(entry.quantizer, PerTokenQuantizer):  # the places looked at are tokens, but which isn't known here
        entry = entry.model_copy(update={"quantizer": replace(entry.quantizer, scale=None)})
    return transform(entry)(value)


def _error(found: Tensor, expected: Tensor, weights: Tensor, metric: Metric) -> Tensor:
    """One for all: (1,)."""
    if metric == "cosine":
        return 1 - torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0).reshape(1)
    return ((found - expected).square() * weights).sum().reshape(1)


def _weights(gradient: Tensor, metric: Metric) -> Tensor:
    """What an output's squared error counts: (∂L/∂O)², and a millionth of its mean.

    The latter keeps a search from clipping away channels that no sample happens to use.
    """
    if metric != "hessian":
        return torch.ones((), device=gradient.device)
    squares = gradient.square()
    return squares + (squares.mean() * 1e-6 or 1.0)
