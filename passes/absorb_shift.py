"""Quantize x - m instead of x where a symmetric quantizer would waste codes, and fold m into the layers that read it.

A SiLU's output lies in [-0.28, max]: on a target without zero-points half of its codes would never be used. With
m in the middle of the range,

    W x + b = W (x - m) + (b + m Σ W)

and x - m fills a symmetric range. m is a whole number of steps, so that 0 stays exact, and it reaches the padding too:
a convolution's borders are padded before m is taken off. The new bias is made of the quantized weights, whose rounding
keeps their sum over the whole value (`onnxquant.quantizers.rounding`).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from onnxquant.calibration.histogram import Histogram
from onnxquant.calibration.range_errors import squared_errors
from onnxquant.calibration.range_methods import RangeMethod, find_range
from onnxquant.graph.bias import takes_bias
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.uniform import UniformQuantizer

TINY = 1e-300
"""Stands for no error at all."""


class AbsorbShift(Pass):
    """Shift activations that the plan quantizes symmetrically, where that makes their steps finer.

    Attributes:
        range: how the shifted range is chosen (`onnxquant.calibration.range_methods`).
        min_gain: dB; by how much the rounding error has to shrink. A shift costs a subtraction, and a padding where the
            layer pads.
    """

    range: RangeMethod = "mse"
    min_gain: Annotated[float, Field(ge=0)] = 3

    requires: ClassVar[frozenset[str]] = frozenset({"plan", "observations"})

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        if context.target.zero_point:
            return PassResult(False, (f"target {context.target.name} has zero-points: nothing to absorb",))
        tensors, shifted = graph.tensors(), 0
        for entry in context.plan.entries:
            quantizer, tensor = entry.quantizer, tensors[entry.tensor]
            seen = context.observed(entry.tensor, Histogram)
            if entry.role == "weight" or not isinstance(quantizer, UniformQuantizer) or seen is None:
                continue
            adds = {node.name for node in tensor.outputs if node.op == "Add"}
            layers = [name for name in entry.consumers or () if name not in adds]
            if not layers or not all(takes_bias(node, tensor) for node in tensor.outputs if node.name in layers):
                continue
            if self._shift(entry, quantizer, seen):
                entry.consumers = layers  # a residual Add has no bias: it reads the value as it is
                shifted += 1
        return PassResult(False, (f"{shifted} activations shifted into a symmetric range",))

    def _shift(self, entry: PlanEntry, quantizer: UniformQuantizer, seen: Histogram) -> bool:
        low, high = find_range(seen, self.range, bits=quantizer.bits, symmetric=False)
        finer, shift = UniformQuantizer.around_middle(low, high, quantizer.bits)
        if 10 * math.log10(_error(quantizer, 0, seen) / _error(finer, shift, seen)) < self.min_gain:
            return False
        entry.quantizer, entry.shift = finer, float(finer.scale) * shift
        entry.why += f"; shifted by {entry.shift:.4g}"
        return True


def _error(quantizer: UniformQuantizer, shift: int, seen: Histogram) -> float:
    """Squared error of the symmetric quantizer for values that `shift` steps are taken off."""
    lowest, highest = quantizer.code_range
    step = np.array([float(quantizer.scale)])
    error = squared_errors(seen, step, np.array([lowest + shift]), highest - lowest)
    return max(float(error[0, 0]), TINY)
