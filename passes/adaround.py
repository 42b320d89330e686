"""Learn how weights round (AdaRound, Nagel et al., 2020), a layer at a time.

A layer is to give, from what the quantized network before it computes, what the float one gives there (Eq. 25). For any
recipe: it comes after the passes that decide, and goes over the plan. Weights that `reconstruct_modules` has learned
are left as they are.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxquant.errors import OnnxquantError
from onnxquant.pass_manager import PassContext, PassResult
from onnxquant.reconstruction.options import Learning


class Adaround(Learning):
    """Learn whether each quantized weight rounds up or down."""

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        """Go over the plan's weights.

        Raises:
            OnnxquantError: no calibration data, no torch, or a node that torch can't compute; the message says which.
        """
        if context.calibration is None:
            raise OnnxquantError(f"{self.pass_name()}: learning needs data; give some with --calib")
        from onnxquant.reconstruction.modules import modules_of_layers
        from onnxquant.reconstruction.reconstruct import Reconstruction

        entries = context.plan.entries
        learned = [entry.tensor for entry in entries if entry.rounding and entry.rounding.mode == "learned"]
        modules = modules_of_layers(graph, entries, but=learned)
        if not modules:
            return PassResult(False, ("no quantized weight whose rounding isn't learned yet",))
        reconstruction = Reconstruction(self, modules, False, context)
        notes = reconstruction.run()
        context.plan.entries = list(reconstruction.state.values())
        return PassResult(False, tuple(notes))
