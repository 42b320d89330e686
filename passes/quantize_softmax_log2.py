"""Decide on log2 quantizers for post-Softmax activations (EfficientQuant, section 2.3).

Attention probabilities follow a power law: most are tiny and matter together. A logarithmic scale gives each of them
the same relative error. Only the Softmax of an attention block is quantized, never a classifier's. The Softmax itself
stays in float: its output goes through the quantizer on its way to the values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from onnxquant.calibration.observers import MinMax
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.log2 import DEFAULT_EPSILON, Log2Quantizer


class QuantizeSoftmaxLog2(Pass):
    """Quantize the output of every attention Softmax on a log2 scale.

    The range is the one calibration saw; without calibration data it is [0, 1], which holds for any Softmax.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in int8.
        epsilon: added before the logarithm; smaller values can't be told from 0. At 4 bits 1e-4 serves better than the
            paper's 1e-5.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    epsilon: Annotated[float, Field(ge=1e-7, le=0.1)] = DEFAULT_EPSILON

    requires: ClassVar[frozenset[str]] = frozenset({"blocks"})
    provides: ClassVar[frozenset[str]] = frozenset({"plan"})

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        return ((softmax.outputs[0].name, MinMax) for softmax in _attention_softmaxes(context))

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        softmaxes = _attention_softmaxes(context)
        for softmax in softmaxes:
            output = softmax.outputs[0]
            observed = context.observed(output.name, MinMax)
            minimum, maximum = (observed.minimum, observed.maximum) if observed else (0.0, 1.0)
            context.plan.add(
                PlanEntry(
                    tensor=output.name,
                    role="activation",
                    quantizer=Log2Quantizer.from_range(minimum, maximum, bits=self.bits, epsilon=self.epsilon),
                    node=softmax.name,
                    why="post-Softmax activation of an attention block: log2 (EfficientQuant 2.3)",
                )
            )
        if not softmaxes:
            return PassResult(False, ("no attention block found, so no Softmax to quantize",))
        return PassResult(False, (f"{len(softmaxes)} post-Softmax activations to {self.bits} bits",))


def _attention_softmaxes(context: PassContext) -> list[gs.Node]:
    assert context.blocks is not None  # the manager has seen to it
    return [block.softmax for block in context.blocks.of_kind("attention") if block.softmax is not None]
