"""Per-token quantizers as codes without scales, multiplied on integers, and outliers, multiplied in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.quantizer_nodes.making import Maker
from onnxquant.quantizer_nodes.uniform import uniform
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.quantizers.uniform import SMALLEST_SCALE, UniformQuantizer


@dataclass(frozen=True)
class Split:
    """What a tensor became.

    Attributes:
        nodes: that make the rest of it, in order.
        codes: whole numbers in float, behind a QuantizeLinear and a DequantizeLinear with scale 1.
        scales: what each token's codes are to be multiplied by.
        outliers: the large values, 0 elsewhere; None where there are none.
    """

    nodes: list[gs.Node]
    codes: gs.Tensor
    scales: gs.Tensor
    outliers: gs.Tensor | None


def split(make: Maker, tensor: gs.Tensor, quantizer: PerTokenQuantizer, *, signed: bool) -> Split:
    """The codes of a tensor, its tokens' scales and its outliers.

    Args:
        make: names the nodes.
        tensor: float, (batch, tokens..., channels).
        quantizer: see there.
        signed: whether codes are int8; if not, uint8 with the zero-point in the middle, which stands for the same. ONNX
            Runtime has its kernels on x86 for those, and replaces int8 only where a single node reads them.
    """
    nodes: list[gs.Node] = []

    def result(op: str, inputs: list[gs.Tensor], suffix: str, **given: Any) -> gs.Tensor:
        nodes.append(make.node(op, inputs, suffix, **given))
        return nodes[-1].outputs[0]

    inner: gs.Tensor = tensor
    outliers = None
    if quantizer.threshold is not None:
        zero = make.constant("zero", 0)
        magnitude = result("Abs", [tensor], "magnitude")
        limit = make.constant("threshold", quantizer.threshold)
        large = result("GreaterOrEqual", [magnitude, limit], "is_outlier", dtype=np.bool_)
        outliers = result("Where", [large, tensor, zero], "outliers")
        inner = result("Where", [large, zero, tensor], "inner")
    if quantizer.scale is not None:
        scales: gs.Tensor = make.constant("scales", quantizer.scale[..., None])
    else:
        shape = None if tensor.shape is None else [*tensor.shape[:-1], 1]
        reduced = [result("Abs", [inner], "inner_magnitude")]
        attributes = {"axes": [-1]} if make.graph.opset < 18 else {}
        if not attributes:  # they are an input from then on
            reduced.append(make.constant("axes", [-1], np.int64))
        largest = result("ReduceMax", reduced, "largest", attributes=attributes, shape=shape)
        step = result("Div", [largest, make.constant("levels", quantizer.code_range[1])], "step", shape=shape)
        smallest = make.constant("smallest", SMALLEST_SCALE[make.dtype.name])
        scales = result("Max", [step, smallest], "scales", shape=shape)
    scaled = result("Div", [inner, scales], "scaled")
    middle = 0 if signed else -quantizer.code_range[0]
    nodes += uniform(make, scaled, UniformQuantizer(quantizer.bits, signed, np.array(1.0), np.array(middle)))
    return Split(nodes, nodes[-1].outputs[0], scales, outliers)


def sum_of_products(make: Maker, product: gs.Tensor, parts: Split, weight: gs.Tensor) -> list[gs.Node]:
    """What follows a MatMul that multiplies the codes: the last node's output is the layer's result.

    Args:
        make: for that result.
        product: the codes times `weight`.
        parts: of what the layer reads.
        weight: of the layer.
    """
    scaled = make.node("Mul", [product, parts.scales], "of_inner")
    if parts.outliers is None:
        return [scaled]
    rest = make.node("MatMul", [parts.outliers, weight], "of_outliers")
    return [scaled, rest, make.node("Add", [scaled.outputs[0], rest.outputs[0]], "sum")]
