"""Optimization profiles: the least, the typical and the largest shape of every input that has dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx

from onnxquant.calibration.samples import InputSpec, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.shapes import default_shape, fitting_shape, image_shape

Shape: TypeAlias = tuple[int, ...]

ShapeRange: TypeAlias = tuple[Shape, Shape, Shape]
"""Minimum, optimum, maximum."""

DEFAULT_BATCH = (1, 1, 8)
"""Minimum, optimum and maximum of a dynamic first axis."""


def profile_shapes(
    model: onnx.ModelProto,
    name: str,
    batch: tuple[int, int, int] | None = None,
    shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> dict[str, ShapeRange]:
    """The shapes that an engine of `model` must take, for every input with a dynamic axis.

    Args:
        model: for its inputs, and the input size that its own preprocessing gives.
        name: what messages call it.
        batch: minimum, optimum and maximum of a dynamic first axis; `DEFAULT_BATCH` by default.
        shapes: minimum, optimum and maximum shape by input; goes before the rest.

    Raises:
        OnnxquantError: an input's size is unknown, a shape doesn't fit its input, there is no such input, a minimum
            is larger than its optimum or that than the maximum, or a batch is given and no first axis is dynamic.
    """
    specs = {spec.name: spec for spec in input_specs(model)}
    if unknown := sorted((shapes or {}).keys() - specs.keys()):
        raise OnnxquantError(f"--shape {unknown[0]}: {name} has no such input, only {', '.join(specs)}")
    if batch and not any(spec.shape and not isinstance(spec.shape[0], int) for spec in specs.values()):
        raise OnnxquantError(f"--batch {_text(batch)}: no input of {name} has a dynamic first axis; leave it out")
    image = image_shape(model, name)
    profile: dict[str, ShapeRange] = {}
    for spec in specs.values():
        given = (shapes or {}).get(spec.name)
        if given is None and all(isinstance(axis, int) for axis in spec.shape):
            continue
        if given is None:
            least, best, most = (default_shape(spec, name, size, image) for size in batch or DEFAULT_BATCH)
        else:
            least, best, most = (fitting_shape(spec, shape, name) for shape in given)
        profile[spec.name] = _ascending(spec, (least, best, most), batch if given is None else None)
    return profile


def _ascending(spec: InputSpec, shapes: ShapeRange, batch: tuple[int, int, int] | None) -> ShapeRange:
    if any(not low <= best <= high for low, best, high in zip(*shapes, strict=True)):
        option = (
            f"--batch {_text(batch)}" if batch else f"--shape {spec.name}={':'.join(_text(s, 'x') for s in shapes)}"
        )
        raise OnnxquantError(f"{option}: must be minimum, optimum and maximum, in this order")
    return shapes


def _text(sizes: Sequence[int], separator: str = ":") -> str:
    return separator.join(map(str, sizes))
