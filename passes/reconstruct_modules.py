"""Learn how the weights of attention and MLPs round and how their activations scale (ADFQ-ViT, section 3.4, "AMO").

A module, an attention or an MLP with its residual Add, is to give what the float network gives, from what the quantized
network before it computes; attention's probabilities are to stay what they are too. See
`onnxquant.reconstruction.reconstruct` for the loss. What is quantized at all, and with how many bits, was decided
before: this pass goes over the plan.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxquant.blocks import Kind
from onnxquant.errors import OnnxquantError
from onnxquant.pass_manager import PassContext, PassResult
from onnxquant.reconstruction.options import Learning


class ReconstructModules(Learning):
    """Learn roundings of weights and scales of activations, a module at a time.

    Attributes:
        blocks: kinds of blocks that are modules.
    """

    blocks: tuple[Kind, ...] = ("attention", "mlp")

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        """Go over the plan.

        Raises:
            OnnxquantError: no calibration data, no torch, or a node that torch can't compute; the message says which.
        """
        if context.calibration is None:
            raise OnnxquantError(f"{self.pass_name()}: learning needs data; give some with --calib")
        from onnxquant.reconstruction.modules import modules_of_blocks
        from onnxquant.reconstruction.reconstruct import Reconstruction

        assert context.blocks is not None  # the manager has seen to it
        modules = modules_of_blocks(graph, context.blocks.of_kind(*self.blocks), context.plan.entries)
        if not modules:
            return PassResult(False, (f"no block of kind {' or '.join(self.blocks)} with quantized weights",))
        reconstruction = Reconstruction(self, modules, True, context)
        notes = reconstruction.run()
        context.plan.entries = list(reconstruction.state.values())
        return PassResult(False, tuple(notes))
