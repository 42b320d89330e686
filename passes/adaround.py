"""Learn how weights round (AdaRound, Nagel et al., 2020), a layer at a time.

A layer is to give, from what the quantized network before it computes, what the float one gives there (Eq. 25). For any
recipe: it comes after the passes that decide, and goes over the plan. Weights that `reconstruct_modules` has learned
are left as they are.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxquant.pass_manager import PassContext
from onnxquant.reconstruction.learning import Learning
from onnxquant.reconstruction.modules import Module, modules_of_layers


class Adaround(Learning):
    """Learn whether each quantized weight rounds up or down."""

    def modules(self, graph: gs.Graph, context: PassContext) -> list[Module]:
        entries = context.plan.entries
        learned = [entry.tensor for entry in entries if entry.rounding and entry.rounding.mode == "learned"]
        return modules_of_layers(graph, entries, but=learned)
