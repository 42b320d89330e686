"""Decide on uniform quantizers for the weights of Gemm and MatMul.

What `quantize_conv_weights` does for convolutions, done for the linear layers of transformers: a scale for each output
feature. A MatMul of two activations has no weight, and a constant of more than two dimensions is a table of matrices
rather than one layer's weight: both stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import onnx_graphsurgeon as gs
from onnxquant.passes.quantize_conv_weights import QuantizeConvWeights

from onnxquant.graph.convolution import LINEAR
from onnxquant.pass_manager import Observation, PassContext


class QuantizeLinearWeights(QuantizeConvWeights):
    """Quantize the constant weights of every Gemm and MatMul.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in 8-bit types.
        granularity: one scale an output feature, or one for the whole tensor.
        scheme: asymmetric (uint8 and a zero-point), symmetric (int8, zero-point 0), or what the target takes.
        rounding: nearest, or sum_preserving, which keeps the plain sum of each feature's weights.
        where: all of them, or only those that the target runs on integers.
        exclude: regular expressions on node names and module scopes; matching layers stay in float.
    """

    rounding: Literal["sum_preserving", "nearest"] = "nearest"

    operators: ClassVar[frozenset[str]] = LINEAR
    what: ClassVar[str] = "linear layer"
    source: ClassVar[str] = ""

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        return ()  # the mean of each input feature isn't observed

    def _layers(self, graph: gs.Graph, context: PassContext) -> Iterable[gs.Node]:
        return (node for node in super()._layers(graph, context) if len(node.inputs[1].shape) == 2)

    def _candidates(self, graph: gs.Graph) -> list[gs.Node]:
        return [node for node in super()._candidates(graph) if isinstance(node.inputs[1], gs.Constant)]
