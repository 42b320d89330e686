"""Learn how the weights of attention and MLPs round and how their activations scale (ADFQ-ViT, section 3.4, "AMO").

A module, an attention or an MLP with its residual Add, is to give what the float network gives, from what the quantized
network before it computes; attention's probabilities are to stay what they are too. See
`onnxquant.reconstruction.reconstruct` for the loss. What is quantized at all, and with how many bits, was decided
before: this pass goes over the plan.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxquant.blocks import Kind
from onnxquant.pass_manager import PassContext
from onnxquant.reconstruction.learning import Learning
from onnxquant.reconstruction.modules import Module, modules_of_blocks


class ReconstructModules(Learning):
    """Learn roundings of weights and scales of activations, a module at a time.

    Attributes:
        blocks: kinds of blocks that are modules.
    """

    blocks: tuple[Kind, ...] = ("attention", "mlp")

    learns_scales: ClassVar[bool] = True

    def modules(self, graph: gs.Graph, context: PassContext) -> list[Module]:
        assert context.blocks is not None  # the manager has seen to it
        return modules_of_blocks(graph, context.blocks.of_kind(*self.blocks), context.plan.entries)
