"""Fold what doesn't depend on the input: Constant nodes, Identity, and arithmetic on constants and static shapes.

Exporters leave weights behind Constant, Identity, Transpose or Cast nodes; after this pass they are initializers.
QuantizeLinear and DequantizeLinear stay as they are.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
import onnxruntime as ort

from onnxquant.pass_manager import Pass, PassContext, PassResult

WARNING, ERROR = 2, 3
"""ONNX Runtime's log severities; it starts with the first."""

LARGEST_FOLDED = 64 * 1024**2
"""Bytes; an Expand or Tile of a constant may be larger than is good to store."""


class FoldConstants(Pass):
    """Turn constant expressions into initializers and remove Identity nodes."""

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        before = len(graph.nodes)
        ort.set_default_logger_severity(
            ERROR
        )  # graphsurgeon folds with sessions of its own, which warn of every oddity
        try:
            graph.fold_constants(size_threshold=LARGEST_FOLDED, error_ok=False)
        except Exception:  # whatever ONNX Runtime throws on one of the constants: fold the others, which takes longer
            graph.fold_constants(size_threshold=LARGEST_FOLDED, partitioning="recursive")
        ort.set_default_logger_severity(WARNING)
        graph.cleanup()
        interface = {id(tensor) for tensor in graph.outputs}
        for node in graph.nodes:
            if node.op == "Identity" and id(node.outputs[0]) not in interface:
                _bypass(node)
        graph.cleanup()
        removed = before - len(graph.nodes)
        return PassResult(removed > 0, (f"{removed} of {before} nodes folded",) if removed else ("nothing to fold",))


def _bypass(node: gs.Node) -> None:
    source, copy = node.inputs[0], node.outputs[0]
    for consumer in list(copy.outputs):
        for position, tensor in enumerate(consumer.inputs):
            if tensor is copy:
                consumer.inputs[position] = source
    node.outputs.clear()
