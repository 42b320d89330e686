"""Replace calls of functions by their bodies, for runtimes that know no functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx.inliner import inline_local_functions


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without functions, which computes the same.

    Every inlined node has a name of its own, and domains that nothing uses any more are not imported.

    Args:
        model: valid; not changed.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    for function in prepared.functions:
        for node in function.node:
            # The inliner makes it unique with a number: no layers of TensorRT may share a name.
            node.name = f"{function.name}/{node.name or node.op_type}"
    _fill_in_defaults(prepared)
    inlined = inline_local_functions(prepared)
    nodes = list(walk(inlined.graph.node))
    for node in nodes:
        while node.input and not node.input[-1]:  # an absent optional input, which TensorRT takes for a zero-point
            del node.input[-1]
    used = {"", *(node.domain for node in nodes)}
    kept = [entry for entry in inlined.opset_import if entry.domain in used]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from walk(graph.node)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _fill_in_defaults(model: onnx.ModelProto) -> None:
    """Give every call the attributes that it leaves to the function: onnx's inliner drops defaults (1.23)."""
    functions = {(function.domain, function.name): function for function in model.functions}
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in walk(nodes):
            if function := functions.get((node.domain, node.op_type)):
                given = {attribute.name for attribute in node.attribute}
                node.attribute.extend(entry for entry in function.attribute_proto if entry.name not in given)
