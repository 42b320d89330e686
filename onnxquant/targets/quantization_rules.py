"""What a runtime refuses in QuantizeLinear, DequantizeLinear and the layers that read them. One function a rule."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from onnxquant.graph.convolution import WEIGHTED
from onnxquant.targets.rules import Finding, refusal_of
from onnxquant.targets.view import Operator, View

NARROW = frozenset({"int4", "float8e4m3fn", "float4e2m1"})
"""Types that are only ever codes: only QuantizeLinear makes them, only DequantizeLinear computes with them."""


def codes(view: View) -> Iterator[Finding]:
    """Codes have a type that the target takes.

    Beyond the parser: a QuantizeLinear to uint8 with zero-point 0 is accepted and computes int8, so that everything
    above half of the range is clipped.
    """
    for node in _quantizing(view):
        if node.op == "QuantizeLinear" and node.dtype(0) == "int32":
            yield node.name, node.input(0), "QuantizeLinear reads int32; cast it to float first"
        dtype = code_dtype(node)
        if not dtype or dtype in view.target.codes:
            continue
        if dtype == "int32":
            remedy = "keep a bias in float"
        elif node.op == "QuantizeLinear" and not node.input(2) and not node.attribute("output_dtype", 0):
            remedy = "it is the default; give it an int8 zero-point of 0"
        else:
            remedy = f"use {view.target.codes[0]} with zero-point 0"
        yield node.name, node.input(0), f"{node.op} has {dtype} codes, which {view.target.name} doesn't take; {remedy}"


def code_dtype(node: Operator) -> str:
    """The type of the codes that a QuantizeLinear makes or a DequantizeLinear reads; "" where it is unknown."""
    if node.op == "DequantizeLinear":
        return node.dtype(0)
    stated = node.attribute("output_dtype", 0)
    if stated:
        return onnx.TensorProto.DataType.Name(stated).lower()
    return node.dtype(2) if node.input(2) else "uint8"


def zero_points(view: View) -> Iterator[Finding]:
    """Zero-points are constants, as many as scales, and 0 where the target takes no other."""
    for node in _quantizing(view):
        if len(node.inputs) < 3:
            continue
        values, scale = node.array(2), node.array(1)
        if not node.input(2):
            yield node.name, "", "an empty name stands for the zero-point; leave the third input out"
        elif values is None:
            yield node.name, node.input(2), f"the zero-point {node.input(2)} is no constant; make it one"
        elif not view.target.zero_point and values.astype(np.float32).any():
            remedy = "quantize symmetrically"
            yield node.name, node.input(2), f"the zero-point {node.input(2)} is not 0; {remedy}"
        elif scale is not None and values.size != scale.size:
            what = f"{values.size} zero-points and {scale.size} scales"
            yield node.name, node.input(2), f"there are {what}; give one zero-point for each scale"


def scales(view: View) -> Iterator[Finding]:
    """Scales are above 0, and there is one, or one for each channel."""
    for node in _quantizing(view):
        name, values, shape = node.input(1), node.array(1), node.scope.shape(node.input(0))
        if values is None:
            continue
        numbers, axis = values.astype(np.float32), node.attribute("axis", 1)
        if not (np.isfinite(numbers).all() and (numbers > 0).all()):
            remedy = "give channels without any value a small one, as 1e-12"
            yield node.name, name, f"the scale {name} is not a number above 0 everywhere; {remedy}"
        if node.attribute("block_size", 0):
            continue
        if numbers.ndim > 1:
            yield node.name, name, f"the scale {name} has {numbers.ndim} dimensions; give it one, or none"
        elif (
            numbers.size > 1 and shape and -len(shape) <= axis < len(shape) and shape[axis] not in (None, numbers.size)
        ):
            what = f"{numbers.size} scales for the {shape[axis]} channels of axis {axis}"
            yield node.name, name, f"there are {what}; set the axis that the scales belong to"


def blocks(view: View) -> Iterator[Finding]:
    """Block-wise scales run along the last axis or the one before it, in whole blocks, one axis at a time."""
    for node in _quantizing(view):
        size, axis = node.attribute("block_size", 0), node.attribute("axis", 1)
        shape, scale = node.scope.shape(node.input(0)), node.scope.shape(node.input(1))
        if not size or not shape or not -len(shape) <= axis < len(shape):
            continue
        if axis % len(shape) < len(shape) - 2:
            remedy = "only MatMul and Gemm take block-wise weights; use one scale a channel"
            yield node.name, node.input(1), f"its blocks lie along axis {axis} of {len(shape)}; {remedy}"
        elif shape[axis] and scale and len(scale) == len(shape) and scale[axis] and shape[axis] % scale[axis]:
            what = f"{shape[axis]} values on axis {axis} don't divide into {scale[axis]} blocks"
            yield node.name, node.input(1), f"{what}; use a block size that divides {shape[axis]}"


def weight_axes(view: View) -> Iterator[Finding]:
    """Scales of weights run along the output channels.

    Beyond the parser, which takes any axis whose length fits: integer kernels can't apply scales of input channels,
    which differ within one sum.
    """
    for layer in (node for node in view.operators if node.op in WEIGHTED):
        for position in (0, 1):
            source, permutation = _dequantizer(layer, position)
            if source is None or source.attribute("block_size", 0) or not _of_constant(source):
                continue
            scale, shape = source.scope.shape(source.input(1)), source.scope.shape(source.input(0))
            if not scale or scale == (1,) or not shape or permutation is None:
                continue
            along = source.attribute("axis", 1) % len(shape)
            axis = permutation.index(along) if permutation else along
            expected = _output_axes(layer, position, shape)
            if axis not in expected and scale == (shape[along],):
                what = f"the weight of {layer.name} has its scales along axis {axis}"
                yield source.name, source.input(1), f"{what}; give it scales along axis {expected[0]}, the outputs"


def mixed_codes(view: View) -> Iterator[Finding]:
    """What a layer multiplies has codes of one type, where both sides have some."""
    for layer in (node for node in view.operators if node.op in WEIGHTED):
        sources = [_dequantizer(layer, position)[0] for position in (0, 1)]
        # The builder converts block-wise codes to floats first.
        found = [code_dtype(source) for source in sources if source and not source.attribute("block_size", 0)]
        if len(found) == 2 and found[0] != found[1] and {*found} <= {*view.target.codes}:
            what = f"{layer.op} multiplies {found[0]} and {found[1]} codes"
            yield layer.name, layer.output, f"{what}; quantize both to one type, or leave one in float"


def packed_codes(view: View) -> Iterator[Finding]:
    """Codes of 4 bits, two a byte, come in even numbers."""
    for node in _quantizing(view):
        dtype, sizes = code_dtype(node), [size or 0 for size in node.scope.shape(node.input(0)) or (0,)]
        before = node.producer(0)
        if before is not None and before.quantizes:
            continue  # said of that
        if dtype in ("int4", "float4e2m1") and math.prod(sizes) % 2:  # 0 where a size is unknown
            what = f"{math.prod(sizes)} codes of {dtype} don't fill whole bytes"
            yield node.name, node.input(0), f"{what}; make their number even, or use int8"


def quantized_constants(view: View) -> Iterator[Finding]:
    """Constants of a code's type are read by DequantizeLinear, and by nothing before it."""
    quantized = {"int8", *NARROW} & set(view.target.codes)
    for node in view.operators:
        for position, name in enumerate(node.inputs):
            if not name or node.scope.constant(name) is None or node.scope.dtype(name) not in quantized:
                continue
            parameter = (node.quantizes and position == 2) or (node.op == "Clip" and position > 0)
            before = node.producer(position)
            direct = node.op == "DequantizeLinear" and (before is None or before.op == "Constant")
            passed_on = node.op == "Identity" and node.output not in node.scope.boundary
            if not (parameter or direct or passed_on or refusal_of(view, node)):
                remedy = "put a DequantizeLinear right behind it, and this operator after that"
                yield node.name, name, f"{node.op} reads the {node.scope.dtype(name)} constant {name}; {remedy}"


def quantized_casts(view: View) -> Iterator[Finding]:
    """Types that are only codes are not cast to or from."""
    for node in view.operators:
        for name in (node.input(0), node.output) if node.op in ("Cast", "CastLike") else ():
            dtype = node.scope.dtype(name)
            if dtype in NARROW and dtype in view.target.codes and node.scope.constant(name) is None:
                remedy = "use QuantizeLinear or DequantizeLinear"
                yield node.name, name, f"{node.op} converts {dtype}; {remedy}"


def _quantizing(view: View) -> Iterator[Operator]:
    return (node for node in view.operators if node.quantizes)


def _of_constant(source: Operator) -> bool:
    """Whether a DequantizeLinear reads a constant, or a constant that is quantized in the graph."""
    before = source.producer(0)
    node = before if before is not None and before.quantizes else source
    return node.scope.constant(node.input(0)) is not None


def _dequantizer(layer: Operator, position: int) -> tuple[Operator | None, list[int] | None]:
    """The DequantizeLinear behind an input, and the axes it went through Transpose with.

    Returns:
        (None, None) where there is none; the axes are [] for as they were and None for lost in a new shape.
    """
    axes: list[int] | None = []
    node = layer.producer(position)
    while node is not None and node.op in ("Identity", "Transpose", "Reshape", "Flatten"):
        if node.op in ("Reshape", "Flatten"):
            before, after = node.scope.shape(node.input(0)), node.scope.shape(node.output)
            axes = axes if before is not None and before == after else None
        elif node.op == "Transpose" and axes is not None:
            rank = len(node.scope.shape(node.input(0)) or ())
            permutation = list(node.attribute("perm", range(rank)[::-1]))
            axes = ([permutation[axis] for axis in axes] if axes else permutation) or None
        node = node.producer(0)
    return (node, axes) if node is not None and node.op == "DequantizeLinear" else (None, None)


def _output_axes(layer: Operator, position: int, shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The axes of a weight of that shape that scales may run along, best first."""
    if layer.op == "Conv":
        return (0,)
    if layer.op == "ConvTranspose":  # of a depthwise one, axis 1 has nothing to tell apart
        return (1, 0) if layer.attribute("group", 1) > 1 and shape[1] == 1 else (1,)
    transposed = layer.op == "Gemm" and layer.attribute("transB" if position else "transA", 0)
    return (len(shape) - (1 if bool(position) != bool(transposed) else 2),)
