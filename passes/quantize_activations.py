"""Decide on uniform quantizers for the activations that weighted layers read, and write where the target wants it.

Where quantizers go is the target's `placement`. Everywhere: a layer whose weight the plan quantizes reads a quantized
activation, and so does a MatMul of two activations; whoever else reads the same value, a residual Add or a SiLU, keeps
the original. One scale a tensor: no runtime has integer kernels for more.

A convolution whose output goes into a residual Add is fused with it, and what the Add reads besides sets the type that
the fused layer reads and writes. Where the target wants it, such an Add reads codes that a layer reads anyway. Adds of
attention and MLP blocks never do: the outliers that a transformer carries along would be clipped or take all codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnxquant.passes.quantize_conv_weights import labels
from pydantic import Field

from onnxquant.calibration.histogram import Histogram
from onnxquant.calibration.range_methods import DEFAULT_PERCENTILE, RangeMethod, find_range
from onnxquant.graph.convolution import WEIGHTED
from onnxquant.graph.topology import NORMS, Topology
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.targets.placement import runs_on_integers

FLOATS = (np.float32, np.float16)

FLOAT_READERS = NORMS | {"Softmax"}
"""Operators that have no integer kernel worth its name; full quantization is for accelerators that have."""


class QuantizeActivations(Pass):
    """Quantize what Conv, ConvTranspose, Gemm and MatMul read.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in 8-bit types.
        input_bits: the same, of what the network is fed: an image has 8 itself. None: as all others.
        range: how the range is chosen from what calibration saw (`onnxquant.calibration.range_methods`).
        percentile: for range=percentile.
        scheme: asymmetric (uint8 and a zero-point), symmetric (int8, zero-point 0), or what the target takes.
        blocks: kinds of blocks to quantize in; empty for all.
        full: quantize what Softmax and the norms read as well, as Q-HyViT's full quantization does. No runtime gains
            speed by it.
        exclude: regular expressions on node names and module scopes; what matching layers read stays in float.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    input_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    range: RangeMethod = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = DEFAULT_PERCENTILE
    scheme: Literal["auto", "asymmetric", "symmetric"] = "auto"
    blocks: tuple[str, ...] = ()
    full: bool = False
    exclude: tuple[re.Pattern[str], ...] = ()

    requires: ClassVar[frozenset[str]] = frozenset({"blocks", "observations"})
    provides: ClassVar[frozenset[str]] = frozenset({"plan"})

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        return ((tensor.name, Histogram) for tensor, _, _ in self._places(graph, context))

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        symmetric = context.target.is_symmetric(self.scheme, self.pass_name())
        weights = {entry.tensor for entry in context.plan.entries if entry.role == "weight"}
        taken = {entry.tensor for entry in context.plan.entries if entry.role == "activation"}
        readers: dict[str, list[gs.Node] | None] = {}
        for tensor, node, is_read in self._places(graph, context):
            constant = node.op in WEIGHTED and isinstance(node.inputs[1], gs.Constant)
            if tensor.name in taken or (constant and node.inputs[1].name not in weights):
                continue  # a float weight would be multiplied in float
            others = readers.setdefault(tensor.name, [])
            if not is_read:  # the whole value is integer, whoever reads it
                readers[tensor.name] = None
            elif others is not None and not (others and others[-1] is node):
                others.append(node)
        if context.target.placement.skips:
            self._share_with_skips(graph, readers, context)
        if not readers:
            return PassResult(False, ("no activation that a quantized layer reads",))
        fed = set() if self.input_bits is None else _fed(graph)
        for name, nodes in readers.items():
            bits = self.input_bits if self.input_bits is not None and name in fed else self.bits
            context.plan.add(self._decide(name, nodes, bits, symmetric, context))
        return PassResult(False, (f"{len(readers)} activations to {self.bits} bits, ranges by {self.range}",))

    def _share_with_skips(
        self, graph: gs.Graph, readers: dict[str, list[gs.Node] | None], context: PassContext
    ) -> None:
        """Add the residual Adds behind integer convolutions to the readers of their skips, if these have any."""
        topology = Topology(graph)
        integer = {id(node) for nodes in readers.values() for node in nodes or ()}
        for position, skip in topology.skips.items():
            add, shared = topology.nodes[position], readers.get(skip.name)
            branch = next(tensor for tensor in add.inputs if tensor is not skip)
            layer = topology.producer(branch)
            if shared is None or layer is None or len(branch.outputs) > 1 or id(topology.nodes[layer]) not in integer:
                continue
            block = context.blocks.of(topology.nodes[layer]) if context.blocks else None
            in_transformer = block is not None and block.kind in ("attention", "mlp")
            if topology.op(layer) == "Conv" and topology.is_linear(layer) and not in_transformer:
                shared.append(add)

    def _decide(
        self, tensor: str, nodes: list[gs.Node] | None, bits: int, symmetric: bool, context: PassContext
    ) -> PlanEntry:
        seen = self.measured(tensor, Histogram, context)
        low, high = find_range(seen, self.range, bits=bits, symmetric=symmetric, percentile=self.percentile)
        read = "written by an integer layer" if nodes is None else f"read by {', '.join(sorted({n.op for n in nodes}))}"
        return PlanEntry(
            tensor=tensor,
            role="activation",
            quantizer=UniformQuantizer.from_range(np.array(low), np.array(high), bits=bits, symmetric=symmetric),
            consumers=None if nodes is None else [node.name for node in nodes],
            node=nodes[0].name if nodes else "",
            why=f"{read}; range by {self.range}",
        )

    def _places(self, graph: gs.Graph, context: PassContext) -> Iterator[tuple[gs.Tensor, gs.Node, bool]]:
        """Every activation that is to be quantized, with a layer and whether that reads it, or writes it."""
        placement, topology = context.target.placement, Topology(graph)
        for node in topology.nodes:
            if self.full and node.op in FLOAT_READERS and self._wanted(node, context):
                if topology.is_activation(node.inputs[0]) and node.inputs[0].dtype in FLOATS:
                    yield node.inputs[0], node, True
                continue
            if not runs_on_integers(node, placement) or not self._wanted(node, context):
                continue
            read = node.inputs[:1] if isinstance(node.inputs[1], gs.Constant) else node.inputs[:2]
            places = [(tensor, True) for tensor in read]
            written = _written(node)
            places += [(written, False)] if node.op in placement.outputs_of and written.outputs else []
            for tensor, is_read in places:
                if topology.is_activation(tensor) and tensor.dtype in FLOATS:
                    yield tensor, node, is_read

    def _wanted(self, node: gs.Node, context: PassContext) -> bool:
        if any(pattern.search(label) for pattern in self.exclude for label in labels(node, context)):
            return False
        block = context.blocks.of(node) if context.blocks else None
        return not self.blocks or (block is not None and block.kind in self.blocks)


def _fed(graph: gs.Graph) -> set[str]:
    """Inputs of the graph, and what only moves their values about."""
    topology, inputs = Topology(graph), {tensor.name for tensor in graph.inputs}
    return {name for name, tensor in graph.tensors().items() if topology.origin(tensor).name in inputs}


def _written(node: gs.Node) -> gs.Tensor:
    """What an integer kernel writes: a Relu behind it is a part of it, since codes saturate."""
    output = node.outputs[0]
    if len(output.outputs) == 1 and output.outputs[0].op == "Relu":
        return output.outputs[0].outputs[0]
    return output
