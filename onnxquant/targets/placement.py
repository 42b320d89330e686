"""Which layers a target runs on integers, by its `Placement`."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from onnxquant.graph.convolution import CONVOLUTIONS, WEIGHTED, input_channels, to_rows
from onnxquant.targets import Placement


def runs_on_integers(layer: gs.Node, placement: Placement) -> bool:
    """Whether a layer is one whose inputs the target wants quantized, and has work enough to make up for that."""
    if layer.op not in WEIGHTED or layer.op not in placement.inputs_of:
        return False
    if not isinstance(layer.inputs[1], gs.Constant):
        return layer.op == "MatMul" and placement.products
    if len(layer.inputs[1].shape) < 2:
        return False
    if layer.op in CONVOLUTIONS:
        return intensity(layer) >= placement.least_intensity
    return math.prod(layer.inputs[1].shape) >= placement.least_weights


def intensity(layer: gs.Node) -> float:
    """Multiplications of a convolution for each value that it reads or writes.

    An output takes C/groups * k^2 of them. Where the stride is s, the input has s^2 times the output's positions; a
    ConvTranspose has it the other way round. The size of the image cancels out.
    """
    weight = layer.inputs[1]
    read, written = input_channels(layer), len(to_rows(layer, weight.values))
    stride = math.prod(layer.attrs.get("strides", [1]))
    positions = (1, stride) if layer.op == "ConvTranspose" else (stride, 1)
    return math.prod(weight.shape) / (read * positions[0] + written * positions[1])
