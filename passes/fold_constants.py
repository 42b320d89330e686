"""Fold what doesn't depend on the input: Constant nodes, Identity, and arithmetic on constants and static shapes.

Exporters leave weights behind Constant, Identity, Transpose or Cast nodes; after this pass they are initializers.
QuantizeLinear and DequantizeLinear stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort

from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.pass_manager import Pass, PassContext, PassResult

RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Not constant, even if all their inputs are."""

WARNING, ERROR = 2, 3
"""ONNX Runtime's log severities; it starts with the first."""

LARGEST_FOLDED = 64 * 1024**2
"""Bytes; an Expand or Tile of a constant may be larger than is good to store."""


class FoldConstants(Pass):
    """Turn constant expressions into initializers and remove Identity nodes."""

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        before = len(graph.nodes)
        _take_whole_shapes(graph)
        # graphsurgeon folds with sessions of its own, which warn of every oddity.
        ort.set_default_logger_severity(ERROR)
        try:
            _fold(graph)
        finally:
            ort.set_default_logger_severity(WARNING)
        graph.cleanup()
        interface = {id(tensor) for tensor in graph.outputs}
        for node in graph.nodes:
            if node.op == "Identity" and id(node.outputs[0]) not in interface:
                replace_uses(node.outputs[0], node.inputs[0])
        graph.cleanup()
        removed = before - len(graph.nodes)
        return PassResult(removed > 0, (f"{removed} of {before} nodes folded",) if removed else ("nothing to fold",))


def _take_whole_shapes(graph: gs.Graph) -> None:
    """Give every Shape with a start or end a Slice for it: graphsurgeon 0.6.1 folds such a Shape to the whole shape."""
    unique, nodes, last = UniqueNames.of_tensors(graph), [], np.iinfo(np.int64).max
    for node in graph.nodes:
        nodes.append(node)
        start, end = node.attrs.get("start", 0), node.attrs.get("end", last)
        if node.op != "Shape" or (start, end) == (0, last):
            continue
        part = node.outputs[0]
        whole = gs.Variable(unique(f"{part.name}_whole"), np.int64)
        bounds = [
            gs.Constant(unique(f"{part.name}_{side}"), np.array([bound], np.int64))
            for side, bound in (("start", start), ("end", end))
        ]
        node.attrs, node.outputs = {}, [whole]
        nodes.append(gs.Node("Slice", f"{node.name}_part", inputs=[whole, *bounds], outputs=[part]))
    graph.nodes = nodes


def _fold(graph: gs.Graph) -> None:
    options = {"size_threshold": LARGEST_FOLDED, "should_exclude_node": lambda node: node.op in RANDOM_OPS}
    try:
        graph.fold_constants(error_ok=False, **options)
    except Exception:
        # Whatever ONNX Runtime throws on one of the constants: fold the others, which takes longer.
        graph.fold_constants(partitioning="recursive", **options)
