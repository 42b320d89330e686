"""The parts of a graph that are learned as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxquant.blocks import Block
from onnxquant.graph.topology import Topology
from onnxquant.plan import PlanEntry


@dataclass(frozen=True)
class Module:
    """Some nodes, what goes in and out, and the plan's tensors inside.

    Attributes:
        name: of its scope, or of a node.
        inputs: activations that its nodes read from outside.
        shapes: what else they read from outside that isn't constant: sizes, which depend on the batch.
        outputs: activations that are read outside.
        probabilities: outputs of attention's Softmax.
        weights: initializers with an entry.
        activations: with an entry, and read by its nodes alone.
    """

    name: str
    inputs: tuple[str, ...]
    shapes: tuple[str, ...]
    outputs: tuple[str, ...]
    probabilities: tuple[str, ...]
    weights: tuple[str, ...]
    activations: tuple[str, ...]


def modules_of_blocks(graph: gs.Graph, blocks: Iterable[Block], entries: Sequence[PlanEntry]) -> list[Module]:
    """A module for each block that holds a quantized weight, in the order of the graph."""
    topology = Topology(graph)
    found = [
        _module(graph, topology, block.scope or block.nodes[0].name, block.nodes, entries, block.softmax)
        for block in blocks
    ]
    return [module for module in found if module.weights]


def modules_of_layers(graph: gs.Graph, entries: Sequence[PlanEntry], *, but: Iterable[str] = ()) -> list[Module]:
    """A module for each layer with a quantized weight, in the order of the graph.

    Args:
        graph: see there.
        entries: the plan's.
        but: weights whose layers are left out.
    """
    topology, weights = Topology(graph), {entry.tensor for entry in entries if entry.role == "weight"}.difference(but)
    return [
        _module(graph, topology, node.name, [node], entries, None)
        for node in topology.nodes
        if any(tensor.name in weights for tensor in node.inputs)
    ]


def _module(
    graph: gs.Graph,
    topology: Topology,
    name: str,
    nodes: Sequence[gs.Node],
    entries: Sequence[PlanEntry],
    softmax: gs.Node | None,
) -> Module:
    inside = {id(node) for node in nodes}
    names = {node.name for node in nodes}
    read = list({tensor.name: tensor for node in nodes for tensor in node.inputs if tensor.name}.values())
    outer = [
        tensor
        for tensor in read
        if not isinstance(tensor, gs.Constant) and not any(id(node) in inside for node in tensor.inputs)
    ]
    left = {id(tensor) for tensor in graph.outputs}
    written = [tensor for node in nodes for tensor in node.outputs if topology.is_activation(tensor)]
    kept = [
        tensor
        for tensor in written
        if id(tensor) in left or any(id(node) not in inside and node.op != "Shape" for node in tensor.outputs)
    ]
    by_name = {tensor.name: tensor for tensor in read}
    own = [entry for entry in entries if entry.tensor in by_name]
    return Module(
        name,
        tuple(tensor.name for tensor in outer if topology.is_activation(tensor)),
        tuple(tensor.name for tensor in outer if not topology.is_activation(tensor)),
        tuple(tensor.name for tensor in kept),
        () if softmax is None else (softmax.outputs[0].name,),
        tuple(entry.tensor for entry in own if entry.role == "weight"),
        tuple(
            entry.tensor
            for entry in own
            if entry.role == "activation" and _consumers(by_name[entry.tensor], entry) <= names
        ),
    )


def _consumers(tensor: gs.Tensor, entry: PlanEntry) -> set[str]:
    return set(entry.consumers if entry.consumers is not None else (node.name for node in tensor.outputs))
