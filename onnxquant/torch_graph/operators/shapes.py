"""Operators that change a tensor's shape, and those that compute with shapes.

What is computed from shapes lies on the CPU, in int64, whatever device the graph runs on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from onnxquant.torch_graph.operators.operator import Operator, plain


def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def constant(
    *,
    value: NDArray[Any] | None = None,
    value_float: float | None = None,
    value_floats: list[float] | None = None,
    value_int: int | None = None,
    value_ints: list[int] | None = None,
) -> Tensor:
    given = (each for each in (value, value_float, value_floats, value_int, value_ints) if each is not None)
    return torch.as_tensor(next(given))


def constant_of_shape(shape: list[int], *, value: NDArray[Any] | None = None) -> Tensor:
    fill = torch.zeros(()) if value is None else torch.from_numpy(value).reshape(())
    return fill.expand(shape)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str) -> Tensor:
    if mode == "DCR":  # channels are (row, column, depth); pixel_shuffle wants (depth, row, column)
        batch, channels, *image = x.shape
        x = x.reshape(batch, blocksize**2, -1, *image).transpose(1, 2).reshape(batch, channels, *image)
    return F.pixel_shuffle(x, blocksize)


def expand(x: Tensor, shape: list[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape))


def flatten(x: Tensor, *, axis: int) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def pad(x: Tensor, pads: list[int], value: float | None = None, axes: list[int] | None = None, *, mode: str) -> Tensor:
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    sides = {axis: (pads[position], pads[position + len(axes)]) for position, axis in enumerate(axes)}
    if mode == "constant":
        flat = [side for axis in reversed(range(x.ndim)) for side in sides.get(axis, (0, 0))]
        return F.pad(x, flat, value=value or 0)
    for axis, (before, after) in sides.items():  # torch's other modes work on some of the axes only
        if before or after:
            x = x.index_select(axis, _sources(x.shape[axis], before, after, mode).to(x.device))
    return x


def _sources(size: int, before: int, after: int, mode: str) -> Tensor:
    """Where the values of a padded axis come from."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    folded = places % (2 * size - 2)
    return torch.minimum(folded, 2 * size - 2 - folded)


def ranges(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def reshape(x: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(shape)])


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def size_of(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)


def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def tile(x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


def transpose(x: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return x.permute(list(reversed(range(x.ndim))) if perm is None else perm)


def unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


OPERATORS = plain(
    {
        "Concat": concat,
        "Constant": constant,
        "DepthToSpace": depth_to_space,
        "Flatten": flatten,
        "Range": ranges,
        "Shape": shape_of,
        "Size": size_of,
        "SpaceToDepth": space_to_depth,
        "Transpose": transpose,
    }
) | {
    "ConstantOfShape": Operator(constant_of_shape, numbers=(0,)),
    "Expand": Operator(expand, numbers=(1,)),
    "Pad": Operator(pad, numbers=(1, 2, 3)),
    "Reshape": Operator(reshape, numbers=(1,)),
    "Squeeze": Operator(squeeze, numbers=(1,)),
    "Tile": Operator(tile, numbers=(1,)),
    "Unsqueeze": Operator(unsqueeze, numbers=(1,)),
}
