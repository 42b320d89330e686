"""Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    BN(Wx + b) = k (Wx + b - μ) + β = (kW) x + k (b - μ) + β        k = γ / sqrt(σ² + ε), a channel each

Exact up to float rounding. Source: Jacob et al. 2018, Eq. 14.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.graph.convolution import from_rows, to_rows
from onnxquant.pass_manager import Pass, PassContext, PassResult


class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the convolution or linear layer before it."""

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        norms = [node for node in graph.nodes if node.op == "BatchNormalization"]
        folded = sum(_fold(norm, graph) for norm in norms)
        graph.cleanup()
        if not norms:
            return PassResult(False, ("no BatchNormalization",))
        return PassResult(folded > 0, (f"{folded} of {len(norms)} folded",))


def _fold(norm: gs.Node, graph: gs.Graph) -> bool:
    """Fold `norm` if it follows a layer with constant weights directly and alone; say whether it was."""
    source = norm.inputs[0]
    layer = source.inputs[0] if source.inputs else None
    if layer is None or len(source.outputs) != 1 or source in graph.outputs or norm.attrs.get("training_mode", 0):
        return False
    if layer.op not in {"Conv", "ConvTranspose", "Gemm"}:
        return False
    parameters = [*layer.inputs[1:], *norm.inputs[1:]]
    if not all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in parameters):
        return False
    gamma, beta, mean, variance = (tensor.values.astype(np.float64) for tensor in norm.inputs[1:])
    factor = gamma / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
    weight = layer.inputs[1]
    has_bias = len(layer.inputs) > 2 and not layer.inputs[2].is_empty()
    bias = layer.inputs[2].values.astype(np.float64) if has_bias else np.zeros_like(beta)
    if layer.op == "Gemm":
        bias = bias * layer.attrs.pop("beta", 1.0)
    rows = to_rows(layer, weight.values.astype(np.float64)) * factor[:, None]
    new_weight = from_rows(layer, rows).astype(weight.dtype)
    new_bias = (factor * (bias - mean) + beta).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False  # float16 overflow, or a variance of -ε
    weight.values = new_weight
    layer.inputs = [*layer.inputs[:2], gs.Constant(f"{layer.name}/folded_bias", new_bias)]
    layer.outputs[0] = norm.outputs[0]
    norm.outputs.clear()
    return True
