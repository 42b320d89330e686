"""Give every weighted operator initializers of its own.

Exporters store equal tensors once: a LayerNorm's zero bias also serves a linear, tied convolutions share a weight. A
pass that edits such a tensor for one operator would change the others.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxquant.graph.edit import UniqueNames
from onnxquant.pass_manager import Pass, PassContext, PassResult

WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})


class UnshareInitializers(Pass):
    """Copy every initializer that a weighted operator shares with another node."""

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        unique = UniqueNames.of_tensors(graph)
        copies = 0
        for node in graph.nodes:
            if node.op not in WEIGHTED_OPS:
                continue
            for position, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant) and (len(tensor.outputs) > 1 or tensor in graph.outputs):
                    node.inputs[position] = gs.Constant(unique(f"{tensor.name}_1"), tensor.values.copy())
                    copies += 1
        return PassResult(copies > 0, (f"{copies} copied",) if copies else ("none are shared",))
