"""Turn the plan into nodes: the one place where quantizers become ONNX.

A weight becomes an integer initializer with a DequantizeLinear behind it; no float copy stays. An activation goes
through a quantize and a dequantize node on its way to the consumers that the plan names; the others keep the original
value, and so does a graph output. One with a scale a token is split, and its consumers' results put together again.
Runtimes know uniform codes only. What other quantizers make is floats to them, and is kept from being rounded again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.errors import OnnxquantError
from onnxquant.graph.bias import add_to_bias, takes_bias, weight_sums
from onnxquant.graph.convolution import (
    CONVOLUTIONS,
    WEIGHTED,
    input_channels,
    output_channel_axis,
)
from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.graph.weight_codes import weight_codes
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizer_nodes import Maker, parameters, quantizer_nodes
from onnxquant.quantizer_nodes.per_token import split, sum_of_products
from onnxquant.quantizers.per_token import PerTokenQuantizer
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
        entries = [(entry, tensors.get(entry.tensor)) for entry in context.plan.entries]
        for entry, tensor in entries:
            if tensor is None:
                raise _misfit(entry, f"is not in {context.model.name}")
            if entry.role == "activation":
                _check_activation(tensor, entry, context.target)
            elif isinstance(entry.quantizer, UniformQuantizer):
                _check_weight(tensor, entry, entry.quantizer, context.target)
            else:
                raise _misfit(entry, f"is a weight, which no {entry.quantizer.kind} quantizer is for")
        weights = {entry.tensor: entry for entry in context.plan.entries if entry.role == "weight"}
        for entry, tensor in entries:
            if entry.shift:
                inserter.fold_shift(_readers(tensor, entry), entry.shift, weights)  # while the weights are still float
        emulated = {  # layers that read codes of other quantizers than a runtime knows: to it they are floats
            reader.name
            for entry, tensor in entries
            if not isinstance(entry.quantizer, UniformQuantizer | PerTokenQuantizer)
            for reader in _readers(tensor, entry)
        }
        for entry, tensor in entries:
            if isinstance(entry.quantizer, PerTokenQuantizer):
                inserter.split_activation(tensor, entry, entry.quantizer, context.target)
            elif entry.role == "activation":
                inserter.quantize_activation(tensor, entry)
            else:
                inserter.quantize_weight(tensor, entry, apart=tensor.outputs[0].name in emulated)
        inserter.finish()
        context.dequantized = dict(inserter.dequantized)
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
        or layer.op not in WEIGHTED
        or layer.inputs[1] is not tensor
    ):
        raise _misfit(entry, "is not the weight of a Conv, ConvTranspose, Gemm or MatMul")
    if quantizer.axis is not None and (
        quantizer.axis != output_channel_axis(layer) or quantizer.scale.size != tensor.shape[quantizer.axis]
    ):
        raise _misfit(
            entry, f"of shape {tuple(tensor.shape)} can't have {quantizer.scale.size} scales on axis {quantizer.axis}"
        )
    means = entry.rounding.channel_mean if entry.rounding else None
    if means is not None and len(means) != input_channels(layer):
        raise _misfit(entry, f"has {input_channels(layer)} input channels, but {len(means)} means")
    _check_codes(entry, quantizer, target)


def _check_codes(entry: PlanEntry, quantizer: UniformQuantizer, target: Target) -> None:
    if not quantizer.signed and not target.unsigned:
        raise _misfit(entry, f"is to be uint8, which target {target.name} refuses")
    if quantizer.zero_point.any() and not target.zero_point:
        raise _misfit(entry, f"has a zero-point, which target {target.name} refuses")


def _check_activation(tensor: gs.Tensor, entry: PlanEntry, target: Target) -> None:
    if isinstance(tensor, gs.Constant) or not tensor.outputs:
        raise _misfit(entry, "is not a value that is computed, or fed, and that a node reads")
    if isinstance(entry.quantizer, UniformQuantizer):
        if entry.quantizer.axis is not None:
            raise _misfit(entry, "is an activation, which has one scale for the whole tensor")
        _check_codes(entry, entry.quantizer, target)
    elif isinstance(entry.quantizer, PerTokenQuantizer):
        _check_tokens(tensor, entry, entry.quantizer)
    if missing := set(entry.consumers or ()) - {node.name for node in tensor.outputs}:
        raise _misfit(entry, f"is not read by {', '.join(sorted(missing))}")
    if entry.shift is not None and not (
        isinstance(entry.quantizer, UniformQuantizer)
        and entry.consumers
        and all(takes_bias(node, tensor) for node in _readers(tensor, entry))
    ):
        raise _misfit(entry, "can't be shifted: no bias of its consumers would make up for it")


def _check_tokens(tensor: gs.Tensor, entry: PlanEntry, quantizer: PerTokenQuantizer) -> None:
    for node in _readers(tensor, entry):
        weight = node.inputs[1] if node.op == "MatMul" and node.inputs[0] is tensor else None
        if not isinstance(weight, gs.Constant) or len(weight.shape) != 2:
            raise _misfit(entry, f"has scales by token, but {node.name} isn't its MatMul by a constant matrix")
    if quantizer.scale is not None and tensor.shape is not None:
        tokens, scales = tensor.shape[1:-1], quantizer.scale.shape
        fit = len(tokens) == len(scales) and len(tensor.shape) > 1
        if not fit or any(isinstance(n, int) and n != size for n, size in zip(tokens, scales, strict=True)):
            raise _misfit(entry, f"of shape {tuple(tensor.shape)} can't have scales of shape {scales} by token")


def _readers(tensor: gs.Tensor, entry: PlanEntry) -> list[gs.Node]:
    """The nodes that are to read the quantized value."""
    return [node for node in tensor.outputs if entry.consumers is None or node.name in entry.consumers]


class _Inserter:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph, self.unique = graph, UniqueNames.of_tensors(graph)
        self._positions = {id(node): position for position, node in enumerate(graph.nodes)}
        self._inner_readers: dict[str, list[int]] = {}  # nodes whose subgraphs read a tensor from outside
        for position, node in enumerate(graph.nodes):
            for name in (name for subgraph in node.subgraphs() for name in subgraph.tensors()):
                self._inner_readers.setdefault(name, []).append(position)
        self._name = UniqueNames(node.name for node in graph.nodes)
        self._before: defaultdict[int, list[gs.Node]] = defaultdict(list)  # new nodes, by the node they go before
        self._after: defaultdict[int, list[gs.Node]] = defaultdict(list)
        self._codes: dict[str, NDArray[np.floating]] = {}  # by weight
        self.dequantized: defaultdict[str, list[str]] = defaultdict(list)

    def quantize_weight(self, weight: gs.Constant, entry: PlanEntry, *, apart: bool) -> None:
        """Store a weight as codes; `apart` from its layer where the two must not become one kernel."""
        quantizer = entry.quantizer
        assert isinstance(quantizer, UniformQuantizer)  # it has been checked
        codes = self._codes_of(weight, entry, quantizer).astype(quantizer.code_dtype)
        stored = gs.Constant(self.unique(f"{weight.name}_quantized"), codes)
        inputs = [stored, *parameters(self._make(weight), quantizer)]
        attributes = {} if quantizer.axis is None else {"axis": quantizer.axis}
        dequantized = gs.Variable(self.unique(f"{weight.name}_dequantized"), weight.dtype, weight.shape)
        node = gs.Node("DequantizeLinear", f"{weight.name}_DequantizeLinear", attributes, inputs, [dequantized])
        self.dequantized[weight.name].append(dequantized.name)
        nodes = [node]
        if apart and len(weight.shape) == 2:
            # ONNX Runtime makes a MatMulNBits of a float activation, DequantizeLinear and MatMul, which rounds that
            # activation to 8 bits, uniformly. With a Flatten, which leaves a matrix as it is, it multiplies in float.
            nodes.append(self._make(weight).node("Flatten", [dequantized], "matrix"))
        self._before[self._first_reader(weight)] += nodes
        replace_uses(weight, nodes[-1].outputs[0])

    def fold_shift(self, readers: Iterable[gs.Node], shift: float, weights: Mapping[str, PlanEntry]) -> None:
        """Make up for a shift by the weights as they will be quantized: their rounding keeps the sums that they had."""
        for layer in readers:
            weight, entry = layer.inputs[1], weights.get(layer.inputs[1].name)
            used = weight.values
            if entry is not None:
                quantizer = entry.quantizer
                assert isinstance(quantizer, UniformQuantizer)
                used = quantizer.dequantize(self._codes_of(weight, entry, quantizer).astype(np.float32))
            behind = add_to_bias(self.graph, layer, shift * weight_sums(layer, used), self.unique)
            if behind is not None:
                self._after[self._positions[id(layer)]].append(behind)

    def quantize_activation(self, tensor: gs.Variable, entry: PlanEntry) -> None:
        if not entry.shift:
            self._route(tensor, entry, None, quantizer_nodes(self._make(tensor), tensor, entry.quantizer))
        else:
            readers = _readers(tensor, entry)
            for pads in dict.fromkeys(map(_pads, readers)):
                alike = [node for node in readers if _pads(node) == pads]
                moving = self._shifted(tensor, entry.shift, pads)
                shifted = moving[-1].outputs[0]
                pair = quantizer_nodes(self._make(shifted), shifted, entry.quantizer)
                self._route(tensor, entry, alike, [*moving, *pair])
                for layer in alike if any(pads) else ():
                    layer.attrs["pads"] = [0] * len(pads)

    def split_activation(
        self, tensor: gs.Variable, entry: PlanEntry, quantizer: PerTokenQuantizer, target: Target
    ) -> None:
        readers = _readers(tensor, entry)
        signed = not (target.unsigned and target.zero_point)
        parts = split(self._make(tensor), tensor, quantizer, signed=signed)
        self._before[self._first_reader(tensor, readers)] += parts.nodes
        for layer in readers:
            result, weight = layer.outputs[0], layer.inputs[1]
            product = gs.Variable(self.unique(f"{result.name}_of_codes"), result.dtype, result.shape)
            layer.inputs[0], layer.outputs = parts.codes, [product]
            after = sum_of_products(self._make(result), product, parts, weight)
            after[-1].outputs = [result]
            self._after[self._positions[id(layer)]] += after

    def _route(
        self, tensor: gs.Variable, entry: PlanEntry, readers: list[gs.Node] | None, nodes: list[gs.Node]
    ) -> None:
        """Let the value go through `nodes` on its way to `readers`, or to all that the entry names."""
        if readers is None and entry.consumers is not None:
            readers = _readers(tensor, entry)
        self.dequantized[tensor.name].append(nodes[-1].outputs[0].name)
        before = self._before[self._first_reader(tensor, readers)]
        slots = [(node, slot) for node in nodes for slot, value in enumerate(node.inputs) if value is tensor]
        replace_uses(tensor, nodes[-1].outputs[0], readers)
        for node, slot in slots:
            node.inputs[slot] = tensor
        before += nodes

    def _shifted(self, tensor: gs.Variable, shift: float, pads: tuple[int, ...]) -> list[gs.Node]:
        """Nodes that pad the value and take `shift` off it."""
        make, nodes, value = self._make(tensor), [], tensor
        if any(pads):
            half = len(pads) // 2
            around = make.constant("pads", [0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
            nodes.append(make.node("Pad", [tensor, around], "padded", shape=None))
            value = nodes[0].outputs[0]
        by = make.constant("shift", shift)
        return [*nodes, make.node("Sub", [value, by], "shifted", shape=None)]

    def _make(self, tensor: gs.Tensor) -> Maker:
        return Maker(self.graph, tensor, self.unique, self._name)

    def _codes_of(self, weight: gs.Constant, entry: PlanEntry, quantizer: UniformQuantizer) -> NDArray[np.floating]:
        """A weight's codes, which a shift of what its layer reads asks for too."""
        if entry.tensor not in self._codes:
            self._codes[entry.tensor] = weight_codes(weight, entry, quantizer)
        return self._codes[entry.tensor]

    def _first_reader(self, tensor: gs.Tensor, readers: list[gs.Node] | None = None) -> int:
        """Position of the first node that reads `tensor`, by itself or in a subgraph; among `readers` if given."""
        chosen = tensor.outputs if readers is None else readers
        positions = [self._positions[id(reader)] for reader in chosen if id(reader) in self._positions]
        return min(positions + (self._inner_readers.get(tensor.name, []) if readers is None else []))

    def finish(self) -> None:
        """Put the new nodes into the graph, which stays sorted and otherwise as it was."""
        self.graph.nodes = [
            node
            for position, original in enumerate(self.graph.nodes)
            for node in (*self._before.get(position, ()), original, *self._after.get(position, ()))
        ]


def _pads(layer: gs.Node) -> tuple[int, ...]:
    """What a layer adds around its input: begins, then ends; () where it isn't a convolution."""
    if layer.op not in CONVOLUTIONS:
        return ()
    rank = len(layer.inputs[1].shape) - 2
    return tuple(layer.attrs.get("pads", [0] * (2 * rank)))
