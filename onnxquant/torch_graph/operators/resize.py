"""Resize, where torch's interpolate computes the same."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from onnxquant.errors import OnnxquantError
from onnxquant.torch_graph.operators.operator import Operator

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""torch's name of linear interpolation by the number of spatial axes."""

SMOOTH_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners")
"""coordinate_transformation_mode of linear and cubic interpolation."""

NEAREST = {
    ("asymmetric", "floor"): "nearest",
    ("half_pixel", "round_prefer_ceil"): "nearest-exact",
    ("half_pixel", "round_prefer_floor"): "nearest-exact",  # unless a source lies halfway between two
}
"""torch's mode by coordinate_transformation_mode and nearest_mode."""


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    mode: str,
    coordinate_transformation_mode: str,
    nearest_mode: str,
    axes: list[int] | None = None,
) -> Tensor:
    before = list(x.shape)
    after, factors = list(before), [1.0] * x.ndim
    for position, axis in enumerate(range(x.ndim) if axes is None else axes):
        factors[axis] = sizes[position] / before[axis] if sizes else (scales or factors)[position]
        after[axis] = sizes[position] if sizes else int(before[axis] * factors[axis])
    if factors[:2] != [1.0, 1.0]:
        raise OnnxquantError("batch and channels can't be resized; export the model without that")
    if mode == "nearest":
        kernel = _nearest(coordinate_transformation_mode, nearest_mode, factors)
    else:
        kernel = _smooth(mode, coordinate_transformation_mode, after[2:])
    corners = coordinate_transformation_mode == "align_corners" if mode != "nearest" else None
    size, scale = (after[2:], None) if sizes else (None, factors[2:])
    return F.interpolate(x, size, scale, kernel, corners, recompute_scale_factor=None if sizes else False)


def _nearest(coordinates: str, rounding: str, factors: list[float]) -> str:
    kernel = NEAREST.get((coordinates, rounding))
    enlarged = all(factor >= 1 and factor == round(factor) for factor in factors)  # then nothing lies halfway
    if kernel is None or (rounding == "round_prefer_floor" and not enlarged):
        raise OnnxquantError(
            f"nearest_mode {rounding} isn't supported with {coordinates} coordinates; export the model with "
            "nearest_mode floor and asymmetric coordinates"
        )
    return kernel


def _smooth(mode: str, coordinates: str, sizes: list[int]) -> str:
    one_pixel = coordinates == "pytorch_half_pixel" and 1 in sizes  # torch itself has no such exception any more
    if coordinates not in SMOOTH_COORDINATES or one_pixel:
        raise OnnxquantError(
            f"{coordinates} coordinates aren't supported with mode {mode} to sizes {sizes}; export the model with "
            "half_pixel or align_corners"
        )
    return LINEAR[len(sizes)] if mode == "linear" else "bicubic"


OPERATORS = {"Resize": Operator(resize, numbers=(2, 3))}
