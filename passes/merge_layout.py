"""Move a tensor's values once, where a chain of Reshape and Transpose moves them several times.

A chain, for example MobileViT's unfolding of a feature map into patches, is one permutation of digits
(`onnxquant.graph.layout`). It can be had with one Transpose, between Reshapes, which cost nothing:

    (B, C, h, p, w, q)  ->  (B, p, q, h, w, C)

That one is slow if it takes values apart that lie together: single values go all over memory. Two are quicker, of which
one moves a single axis and the other one moves whole runs of values:

    (B, C, h p w q)  ->  (B, h p w q, C)        (B, h, p, w, q, C)  ->  (B, p, q, h, w, C)

What is quickest is kept, the chain itself if that is. Before, each shape that is computed from the batch size becomes
a constant with one -1, which holds for every batch. Exact: values are moved and not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.graph.layout import Step, Steps, cost, equivalents
from onnxquant.graph.sizes import Shape, reshape_target, static_axes
from onnxquant.graph.tensor_sizes import RESHAPES, TensorSizes, permutation
from onnxquant.pass_manager import Pass, PassContext, PassResult

LAYOUT = RESHAPES | {"Transpose"}


@dataclass
class Chain:
    """Nodes of which each is the only reader of the one before, and the shapes before, between and after them."""

    nodes: list[gs.Node]
    shapes: list[Shape]


class MergeLayout(Pass):
    """Merge chains of Reshape and Transpose, for targets that want it, and make computed shapes constant."""

    edits: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        if not context.target.placement.layout:
            return PassResult(
                False, (f"target {context.target.name} takes chains of Reshape and Transpose as they are",)
            )
        unique, sizes = UniqueNames.of_tensors(graph), TensorSizes(graph)
        constant = sum(_make_constant(node, sizes, unique) for node in graph.nodes if node.op == "Reshape")
        graph.cleanup()  # who reads only the shape of a tensor would part a chain
        kept = {tensor.name for tensor in graph.outputs}  # these values are also read by others than nodes
        kept.update(name for inner in graph.subgraphs(recursive=True) for name in inner.tensors())
        merged = sum(_merge(chain, kept, unique) for chain in list(_chains(graph, sizes, kept)))
        graph.cleanup()
        if not constant and not merged:
            return PassResult(False, ("no chain of Reshape and Transpose is quicker another way",))
        return PassResult(True, (f"{merged} chains of Reshape and Transpose merged, {constant} shapes made constant",))


def _make_constant(node: gs.Node, sizes: TensorSizes, unique: UniqueNames) -> bool:
    """Give a Reshape whose target is computed a constant one, if it is known for every batch; say whether it is."""
    shape = sizes.shape(node.outputs[0])
    target = None if shape is None or isinstance(node.inputs[1], gs.Constant) else reshape_target(shape)
    if target is not None:
        _set_target(node, target, unique)
    return target is not None


def _set_target(node: gs.Node, target: list[int], unique: UniqueNames) -> None:
    node.inputs = [node.inputs[0], gs.Constant(unique(f"{node.name}_shape"), np.array(target, np.int64))]
    node.attrs = {}


def _chains(graph: gs.Graph, sizes: TensorSizes, kept: set[str]) -> Iterator[Chain]:
    """All longest chains whose shapes are known."""
    known = {id(n) for n in graph.nodes if n.op in LAYOUT and sizes.shape(n.inputs[0]) and sizes.shape(n.outputs[0])}

    def follower(node: gs.Node) -> gs.Node | None:
        tensor = node.outputs[0]
        alone = len(tensor.outputs) == 1 and tensor.name not in kept
        reader = tensor.outputs[0] if alone else None
        return reader if reader is not None and id(reader) in known and reader.inputs[0] is tensor else None

    followers = {id(node): follower(node) for node in graph.nodes if id(node) in known}
    inner = {id(node) for node in followers.values()}
    for node in graph.nodes:
        if id(node) in known and id(node) not in inner:
            chain, last = Chain([], [sizes.shape(node.inputs[0]) or ()]), node
            while last is not None:
                chain.nodes.append(last)
                chain.shapes.append(sizes.shape(last.outputs[0]) or ())
                last = followers[id(last)]
            yield chain


def _merge(chain: Chain, kept: set[str], unique: UniqueNames) -> bool:
    """Put the quickest steps in place of a chain; False where it is as quick itself."""
    steps = _steps(chain)
    best = min((other for other in equivalents(steps) if len(other) <= len(steps)), key=cost, default=steps)
    first, last = chain.nodes[0].inputs[0], chain.nodes[-1].outputs[0]
    if cost(best) >= cost(steps) or (not best and last.name in kept):
        return False
    tensor = first
    for node in chain.nodes:
        node.outputs = []
    for node, step in zip(chain.nodes, best, strict=False):  # a node keeps its name, and with it its scope and block
        node.op = "Reshape" if step.perm is None else "Transpose"
        node.inputs, node.attrs = [tensor], {} if step.perm is None else {"perm": list(step.perm)}
        if step.perm is None:
            _set_target(node, reshape_target(step.after) or [], unique)
        tensor = last
        if step is not best[-1]:
            tensor = gs.Variable(unique(f"{node.name}_merged"), first.dtype, static_axes(step.after))
        node.outputs = [tensor]
    if not best:
        replace_uses(last, first)
    return True


def _steps(chain: Chain) -> Steps:
    """What the nodes of a chain do."""
    return [
        Step(before, after, tuple(permutation(node, len(before))) if node.op == "Transpose" else None)
        for node, before, after in zip(chain.nodes, chain.shapes[:-1], chain.shapes[1:], strict=True)
    ]
