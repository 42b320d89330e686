"""Compute in float16 what isn't quantized, and in float32 what float16 can't hold.

float16 ends at 65504 and loses precision below 6e-5. A node stays in float32 if

    its operator    is one of `block_ops`
    a constant      of it is above 65504, or a scalar below 6e-5 (the epsilon of a norm)
    a value         it reads or computes came near 65504 on the calibration data
    it has no       float16 form: calls of functions, operators outside the ONNX standard, subgraphs

QuantizeLinear and DequantizeLinear stay too, and a Cast follows them: their scales keep their precision, opsets below
19 have no float16 scales, and TensorRT-RTX 1.7 makes the same kernels of both forms, with integer weights in the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.calibration.observers import MinMax
from onnxquant.graph.float16 import LARGEST, SMALLEST_NORMAL, float16_inputs, to_float16
from onnxquant.graph.model import infer_types
from onnxquant.graph.topology import ACTIVATION_FUNCTIONS, NORMS, POOLS, SHAPE_OPS, Topology
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult

HEADROOM = 4
"""How far under 65504 the values seen in calibration have to stay: others may be larger."""

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})

# What sums over many values or grows fast can overflow inside, where calibration sees nothing; a square root and a
# reciprocal spread the small values that float16 holds badly. BatchNormalization is neither: its sums are constants.
BLOCKED_OPS = (
    *sorted(NORMS - {"BatchNormalization"}),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
    *("CumSum", "Exp", "GlobalAveragePool", "Log", "LogSoftmax", "Pow", "Reciprocal", "Softmax", "Softplus", "Sqrt"),
)

BOUNDED = (SHAPE_OPS | POOLS | ACTIVATION_FUNCTIONS | {"Softmax", "Where"}) - {"Exp"}
"""Operators whose result is hardly larger than their largest input, or than 1: it need not be observed."""


class ConvertToFloat16(Pass):
    """Let what isn't quantized compute in float16, with casts to and from what stays in float32.

    Runs after every recipe where asked for (``--float-type fp16``). Inputs and outputs of the model stay float32. A
    model that holds float16 already is left as it is.

    Attributes:
        block_ops: operators that stay in float32.
    """

    block_ops: tuple[str, ...] = BLOCKED_OPS

    requires: ClassVar[frozenset[str]] = frozenset({"observations"})
    exact: ClassVar[bool] = False

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        topology = Topology(graph)
        growing = [node for node in topology.nodes if node.op not in BOUNDED and not any(map(_is_mask, node.inputs))]
        for tensor in (*graph.inputs, *(output for node in growing for output in node.outputs)):
            if tensor.dtype == np.float32 and topology.is_activation(tensor):
                yield tensor.name, MinMax

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        if any(tensor.dtype is None for tensor in graph.tensors().values()):
            infer_types(graph)
        if any(tensor.dtype == np.float16 for tensor in graph.tensors().values()):
            return PassResult(False, ("the model holds float16 already: its types stay as they are",))
        topology = Topology(graph)
        largest = _largest(topology, graph.inputs, context)
        read_inside = {name for inner in graph.subgraphs(recursive=True) for name in inner.tensors()}
        chosen, kept, overflowing = {}, Counter[str](), []
        for position, node in enumerate(topology.nodes):
            tensors = [tensor for tensor in (*node.inputs, *node.outputs) if tensor.dtype == np.float32]
            if not tensors or not topology.is_active(position) or node.op in ("Shape", "Size"):
                continue
            inputs = float16_inputs(node, graph.opset)
            peak = max(largest.get(tensor.name, 0) for tensor in tensors)
            fits = peak * HEADROOM <= LARGEST and not any(map(_is_outside, node.inputs))
            blocked = node.op in QUANTIZERS or node.op in self.block_ops
            inside = any(tensor.name in read_inside for tensor in node.outputs)
            if inputs and fits and not blocked and not inside:
                chosen[id(node)] = inputs
            else:
                kept[node.op] += 1
                if inputs and not blocked and peak * HEADROOM > LARGEST:
                    overflowing.append((peak, node.name))
        to_float16(graph, chosen)
        graph.cleanup()
        return PassResult(bool(chosen), tuple(_notes(len(chosen), kept, overflowing, context)))


def _largest(topology: Topology, inputs: Iterable[gs.Tensor], context: PassContext) -> dict[str, float]:
    """The largest magnitude of each tensor: what calibration saw, or that of the node's inputs; 0 where neither is."""

    def observed(tensor: gs.Tensor, otherwise: float) -> float:
        seen = context.observed(tensor.name, MinMax)
        return max(-seen.minimum, seen.maximum) if seen else otherwise

    largest = {tensor.name: observed(tensor, 0) for tensor in inputs}
    for node in topology.nodes:
        most = max((largest.get(tensor.name, 0) for tensor in node.inputs), default=0)
        largest.update((tensor.name, observed(tensor, most)) for tensor in node.outputs)
    return largest


def _is_mask(tensor: gs.Tensor) -> bool:
    """Whether a constant holds infinities: calibration would take those it leads to for errors."""
    return isinstance(tensor, gs.Constant) and tensor.dtype == np.float32 and bool(np.isinf(tensor.values).any())


def _is_outside(tensor: gs.Tensor) -> bool:
    """Whether a constant is too large for float16, or a scalar too small; infinities are the same in both types."""
    if not isinstance(tensor, gs.Constant) or tensor.dtype != np.float32:
        return False
    magnitudes = np.abs(tensor.values[np.isfinite(tensor.values)])
    return bool((magnitudes > LARGEST).any() or (magnitudes.size == 1 and 0 < magnitudes.item() < SMALLEST_NORMAL))


def _notes(
    converted: int, kept: Counter[str], overflowing: list[tuple[float, str]], context: PassContext
) -> Iterable[str]:
    total = sum(kept.values())
    which = ", ".join(f"{count} {op}" for op, count in kept.most_common())
    yield f"{converted} nodes in float16" + (f", {total} kept in float32 ({which})" if total else "")
    if overflowing:
        peak, name = max(overflowing)
        yield f"{len(overflowing)} of them for their values (largest {peak:.2g}, at {name})"
    if not context.observations:
        yield "values not measured, so float16 may overflow (give --calib to keep what does in float32)"
