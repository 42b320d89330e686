"""The sizes of a model's inputs: given by the user, or found where the file leaves axes dynamic."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxquant.calibration.samples import InputSpec
from onnxquant.errors import OnnxquantError
from onnxquant.preprocessing import Preprocessing


def image_shape(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """(3, height, width) as the model's own preprocessing says; () where it says nothing.

    Args:
        model: for its metadata.
        name: what messages call it.
    """
    preprocessing = Preprocessing.from_metadata({entry.key: entry.value for entry in model.metadata_props}, name)
    return (3, *preprocessing.input_size) if preprocessing else ()


def default_shape(spec: InputSpec, name: str, batch: int, image: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The shape of an input of model `name`: its fixed sizes, `batch` and `image` where they are dynamic.

    Raises:
        OnnxquantError: another axis is dynamic.
    """
    known = [batch, *image] if len(spec.shape) == 1 + len(image) else [batch]
    sizes = [axis if isinstance(axis, int) else size for axis, size in zip(spec.shape, known, strict=False)]
    rest = spec.shape[len(sizes) :]
    if any(not isinstance(axis, int) for axis in rest):
        raise OnnxquantError(
            f"{name}: input {spec} has dynamic axes; give its shape, for example --shape {spec.name}=1x3x224x224"
        )
    return (*sizes, *(axis for axis in rest if isinstance(axis, int)))


def fitting_shape(spec: InputSpec, given: Sequence[int], name: str) -> tuple[int, ...]:
    """`given`, once it fits the input of model `name`.

    Raises:
        OnnxquantError: it has another rank, or another size where the input's is fixed.
    """
    fits = len(given) == len(spec.shape) and all(
        size == axis or not isinstance(axis, int) for size, axis in zip(given, spec.shape, strict=True)
    )
    if not fits:
        text = "x".join(map(str, given))
        raise OnnxquantError(f"--shape {spec.name}={text}: doesn't fit input {spec} of {name}")
    return tuple(given)


def parse_sizes(text: str, separator: str) -> list[int] | None:
    """Positive integers, as 1x3x224x224 or 1:4:8; None where the text is anything else."""
    try:
        sizes = [int(size) for size in text.lower().split(separator)]
    except ValueError:
        return None
    return sizes if min(sizes) > 0 else None
