"""Twin uniform quantizers as two symmetric pairs and a Where between them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.quantizer_nodes.making import Maker
from onnxquant.quantizer_nodes.uniform import uniform
from onnxquant.quantizers.twin_uniform import TwinUniformQuantizer


def twin_uniform(make: Maker, tensor: gs.Tensor, quantizer: TwinUniformQuantizer) -> list[gs.Node]:
    """Less, both pairs, and the Where that takes from one or the other."""
    below = make.node("Less", [tensor, make.constant("split", quantizer.split)], "below", dtype=np.bool_)
    low, high = (uniform(make, tensor, part) for part in (quantizer.low, quantizer.high))
    ends = [below.outputs[0], low[-1].outputs[0], high[-1].outputs[0]]
    return [below, *low, *high, make.node("Where", ends, "twin_dequantized")]
