"""Where the channels of a weighted layer lie in its weight, which is its second input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
LINEAR = frozenset({"Gemm", "MatMul"})
WEIGHTED = CONVOLUTIONS | LINEAR


def output_channel_axis(layer: gs.Node) -> int:
    """The weight axis that per-channel scales lie on.

    A ConvTranspose's weight is (C, M/groups, kernel...): axis 1, where the groups share their scales. With groups of
    one output each, axis 1 has nothing to tell apart; axis 0 (the output channels of a depthwise one) serves better.
    """
    if layer.op in LINEAR:
        return 0 if layer.attrs.get("transB", 0) else len(layer.inputs[1].shape) - 1
    if layer.op == "ConvTranspose" and not (layer.attrs.get("group", 1) > 1 and layer.inputs[1].shape[1] == 1):
        return 1
    return 0


def input_channels(layer: gs.Node) -> int:
    """C, the number of channels the layer reads."""
    shape = layer.inputs[1].shape
    if layer.op in LINEAR:
        return int(shape[1] if layer.attrs.get("transB", 0) else shape[-2])
    return int(shape[0] if layer.op == "ConvTranspose" else shape[1] * layer.attrs.get("group", 1))


def to_rows(layer: gs.Node, values: NDArray[Any]) -> NDArray[Any]:
    """Values that broadcast to the layer's weight, as one row an output channel: (M, taps)."""
    shape = tuple(layer.inputs[1].shape)
    values = np.broadcast_to(values, shape)
    if layer.op in LINEAR:
        return values if layer.attrs.get("transB", 0) else values.T
    if layer.op == "Conv":  # (M, C/groups, kernel...)
        return values.reshape(shape[0], -1)
    groups = layer.attrs.get("group", 1)  # (C, M/groups, kernel...)
    grouped = values.reshape(groups, shape[0] // groups, shape[1], -1)
    return grouped.swapaxes(1, 2).reshape(groups * shape[1], -1)


def from_rows(layer: gs.Node, rows: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `to_rows`: (M, taps) back to the weight's shape."""
    shape = tuple(layer.inputs[1].shape)
    if layer.op in LINEAR:
        return rows if layer.attrs.get("transB", 0) else rows.T
    if layer.op == "Conv":
        return rows.reshape(shape)
    groups = layer.attrs.get("group", 1)
    grouped = rows.reshape(groups, shape[1], shape[0] // groups, -1)
    return grouped.swapaxes(1, 2).reshape(shape)


def tap_mean(layer: gs.Node, channel_mean: NDArray[Any]) -> NDArray[Any]:
    """The mean of the input channel that each weight is multiplied by; broadcasts to the weight's shape.

    Args:
        layer: a weighted layer.
        channel_mean: shape (C,).
    """
    if layer.op in LINEAR:
        return channel_mean if layer.attrs.get("transB", 0) else channel_mean[:, None]
    shape, groups = layer.inputs[1].shape, layer.attrs.get("group", 1)
    spatial = [1] * (len(shape) - 2)
    if layer.op == "ConvTranspose":
        return channel_mean.reshape(-1, 1, *spatial)
    by_group = channel_mean.reshape(groups, 1, -1)  # each group's M/groups outputs see its own C/groups inputs
    return np.repeat(by_group, shape[0] // groups, axis=1).reshape(shape[0], -1, *spatial)
