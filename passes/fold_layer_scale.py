"""Fold a constant that scales or shifts every output channel of a layer into the layer's weight and bias.

    s (W x + b) + t = (s W) x + (s b + t)        s, t: a channel each, or one number

Layer scale, as in hybrids with residual branches (Touvron et al. 2021, CaiT, Eq. 7), is such a Mul. Between quantizers
it can't be fused any more, and costs as much as the layer. Exact up to float rounding.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.graph.channel_scales import is_layer
from onnxquant.graph.convolution import CONVOLUTIONS, from_rows, to_rows
from onnxquant.graph.edit import UniqueNames
from onnxquant.pass_manager import Pass, PassContext, PassResult

SCALES, SHIFTS = frozenset({"Mul", "Div"}), frozenset({"Add", "Sub"})


class FoldLayerScale(Pass):
    """Fold Mul, Div, Add and Sub by a constant a channel into the convolution or linear layer before them."""

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        unique, folded = UniqueNames.of_tensors(graph), Counter[bool]()
        kept = {tensor.name for tensor in graph.outputs}  # these values are also read by others than nodes
        kept.update(name for inner in graph.subgraphs(recursive=True) for name in inner.tensors())
        for node in graph.nodes:
            if node.op in SCALES | SHIFTS and _fold(node, kept, unique):
                folded[node.op in SCALES] += 1
        graph.cleanup()
        if not folded:
            return PassResult(False, ("no constant scales or shifts the channels of a layer",))
        parts = [
            f"{folded[is_scale]} {what}" for is_scale, what in ((True, "scales"), (False, "shifts")) if folded[is_scale]
        ]
        return PassResult(True, (f"{' and '.join(parts)} folded",))


def _fold(node: gs.Node, kept: set[str], unique: UniqueNames) -> bool:
    """Fold `node` if it follows a layer with constant weights directly and alone; say whether it was."""
    position = next((i for i, tensor in enumerate(node.inputs) if isinstance(tensor, gs.Constant)), None)
    if position is None or (position == 0 and node.op in ("Div", "Sub")):
        return False
    constant, source = node.inputs[position], node.inputs[1 - position]
    if len(source.inputs) != 1 or len(source.outputs) != 1 or source.name in kept:
        return False
    last = source.inputs[0]
    layer = _layer(last, kept)
    if layer is None or not _is_per_channel(constant, layer):
        return False
    values = np.broadcast_to(constant.values.astype(np.float64).reshape(-1), _channels(layer))
    if node.op in SCALES:
        with np.errstate(divide="ignore", invalid="ignore"):
            folded = _apply(layer, last, unique, scale=1 / values if node.op == "Div" else values)
    else:
        folded = _apply(layer, last, unique, shift=-values if node.op == "Sub" else values)
    if folded:
        last.outputs, node.outputs = list(node.outputs), []
    return folded


def _layer(last: gs.Node, kept: set[str]) -> gs.Node | None:
    """The layer whose result `last` writes: itself, or the MatMul before an Add that is its bias."""
    if last.op == "Add" and any(isinstance(tensor, gs.Constant) for tensor in last.inputs):
        product = next((tensor for tensor in last.inputs if tensor.inputs), None)
        if product is None or len(product.outputs) != 1 or product.name in kept:
            return None
        layer: gs.Node = product.inputs[0]
        return layer if layer.op == "MatMul" and is_layer(layer) else None
    return last if is_layer(last) else None


def _channels(layer: gs.Node) -> int:
    return len(to_rows(layer, layer.inputs[1].values))


def _is_per_channel(constant: gs.Constant, layer: gs.Node) -> bool:
    """Whether a constant beside a layer's output has one number in all or one a channel, and adds no dimension."""
    shape = constant.shape
    rank = len(layer.inputs[1].shape) if layer.op != "MatMul" else len(layer.inputs[0].shape or (1,))
    if len(shape) > rank:
        return False
    axis = 1 - rank if layer.op in CONVOLUTIONS else -1
    size = int(np.prod(shape))
    return size == 1 or (len(shape) >= -axis and shape[axis] == size == _channels(layer))


def _apply(
    layer: gs.Node,
    last: gs.Node,
    unique: UniqueNames,
    scale: NDArray[np.float64] | None = None,
    shift: NDArray[np.float64] | None = None,
) -> bool:
    """Scale or shift what a layer writes; False, and nothing is done, where its type can't hold the new weights.

    Args:
        layer: to be changed.
        last: the node that adds its bias: `layer`, or the Add behind a MatMul.
        unique: names of the graph's tensors.
        scale: shape (M,).
        shift: shape (M,).
    """
    weight = layer.inputs[1]
    position = 2 if last is layer else next(i for i, t in enumerate(last.inputs) if isinstance(t, gs.Constant))
    bias = last.inputs[position] if len(last.inputs) > position and not last.inputs[position].is_empty() else None
    if bias is None and shift is not None and layer.op == "MatMul":
        return False  # this is its bias
    if bias is not None and not isinstance(bias, gs.Constant):
        return False
    rows = to_rows(layer, weight.values.astype(np.float64))
    rows = rows if scale is None else rows * scale[:, None]
    before = np.zeros(len(rows)) if bias is None else bias.values.astype(np.float64)
    beta = layer.attrs.get("beta", 1.0) if layer.op == "Gemm" else 1.0
    after = before * beta * (1 if scale is None else scale) + (0 if shift is None else shift)
    if not (_fits(rows, weight.dtype) and _fits(after.reshape(1, -1), weight.dtype)):
        return False
    weight.values = from_rows(layer, rows).astype(weight.dtype)
    layer.attrs.pop("beta", None)
    if bias is not None or shift is not None:
        name = f"{weight.name}_bias" if bias is None else bias.name
        alone = bias is not None and len(bias.outputs) == 1
        new = gs.Constant(name if alone else unique(name), after.astype(weight.dtype))
        last.inputs = [*last.inputs[:position], new, *last.inputs[position + 1 :]]
    return True


def _fits(rows: NDArray[np.float64], dtype: Any) -> bool:
    """Whether a type holds every row but for its own rounding: a small layer scale leaves nothing of float16."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(rows.astype(dtype) - rows).max(axis=1)
    return bool((error <= np.finfo(dtype).eps * np.abs(rows).max(axis=1)).all() and np.isfinite(rows).all())
