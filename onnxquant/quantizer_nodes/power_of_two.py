"""Power-of-two factors as multiplications around a uniform pair."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxquant.quantizer_nodes.making import Maker
from onnxquant.quantizer_nodes.uniform import uniform
from onnxquant.quantizers.power_of_two import PowerOfTwoFactorQuantizer


def power_of_two(make: Maker, tensor: gs.Tensor, quantizer: PowerOfTwoFactorQuantizer) -> list[gs.Node]:
    """Mul, the pair, and the Mul that takes the factors back."""
    shrink = make.node("Mul", [tensor, make.constant("inverse_factors", 1 / quantizer.factors)], "divided")
    pair = uniform(make, shrink.outputs[0], quantizer.uniform)
    grow = make.node("Mul", [pair[-1].outputs[0], make.constant("factors", quantizer.factors)], "factors_dequantized")
    return [shrink, *pair, grow]
