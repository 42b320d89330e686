"""From a picture to the array a vision model takes: timm's evaluation transform without torch.

A model file carries its own preprocessing as JSON in its metadata: whoever runs it needs neither timm nor a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from onnxquant.errors import OnnxquantError, first_invalid

if TYPE_CHECKING:
    from onnxquant.calibration.samples import InputSpec

METADATA_KEY = "onnxquant.preprocessing"
CLASSES_KEY = "onnxquant.classes"

PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "unit": {"crop_pct": 1.0, "interpolation": "bicubic", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
}
"""What ``--preprocess imagenet`` and ``--preprocess unit`` stand for."""

_Side = Annotated[int, Field(gt=0, le=16384)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocessing(BaseModel):
    """Resize the shortest edge, crop the centre, scale to 0..1, normalise.

    Attributes:
        input_size: (height, width) that the model takes.
        crop_pct: the share of the resized image's edge that the crop keeps.
        crop_mode: which part is kept.
        interpolation: pillow's resampling filter, by name.
        mean: subtracted from each of the channels R, G, B in 0..1.
        std: what each channel is divided by then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_size: tuple[_Side, _Side]
    crop_pct: float = Field(ge=0.1, le=1)
    crop_mode: Literal["center"] = "center"
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Positive, _Positive, _Positive]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], name: str) -> Preprocessing | None:
        """The preprocessing that the model file `name` carries in its metadata; None where it carries none.

        Raises:
            OnnxquantError: there is some, but not as `to_json` writes it.
        """
        if METADATA_KEY not in metadata:
            return None
        return _validate(
            _json(metadata[METADATA_KEY], f"{name}: metadata {METADATA_KEY}"), f"{name}: metadata {METADATA_KEY}"
        )

    def to_json(self) -> str:
        """The value of the metadata key: JSON on one line, keys sorted."""
        return json.dumps(self.model_dump(), sort_keys=True)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """The array for one image, float32 of shape (3, height, width).

        Images of any mode become RGB. EXIF rotation is not applied: timm does not, and the model was trained that way.

        Raises:
            ValueError: the image's mode has no defined range, or it is so thin that resizing it takes absurd memory.
        """
        height, width = self.input_size
        image = _resize(
            _to_rgb(image), [math.floor(side / self.crop_pct) for side in self.input_size], self.interpolation
        )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        cropped = image.crop((left, top, left + width, top + height))
        scaled = np.asarray(cropped, np.float32) / np.float32(255)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def parse_preprocessing(text: str, specs: Sequence[InputSpec]) -> Preprocessing:
    """The value of ``--preprocess``: "imagenet", "unit" or JSON with the fields of `Preprocessing`.

    An input_size that is not given is the model's own.

    Raises:
        OnnxquantError: the text is none of these, or has no input_size where the model's height and width are dynamic.
    """
    fields = PRESETS[text] if text in PRESETS else _json(text, f"--preprocess (neither {' nor '.join(PRESETS)})")
    if isinstance(fields, dict) and "input_size" not in fields:
        shape = specs[0].shape if specs else ()
        if len(shape) != 4 or not all(isinstance(side, int) for side in shape[2:]):
            raise OnnxquantError(
                f"--preprocess {text}: the model's input has no fixed height and width to take input_size from; "
                'give JSON with "input_size": [height, width] and the other fields'
            )
        fields = {**fields, "input_size": shape[2:]}
    return _validate(fields, "--preprocess")


def classes_from_metadata(metadata: Mapping[str, str], name: str) -> list[str] | None:
    """The class names, in the order of the outputs, that the model file `name` carries; None where it carries none.

    Raises:
        OnnxquantError: there are some, but not as a JSON list of texts.
    """
    if CLASSES_KEY not in metadata:
        return None
    classes = _json(metadata[CLASSES_KEY], f"{name}: metadata {CLASSES_KEY}")
    if not isinstance(classes, list) or not all(isinstance(entry, str) for entry in classes):
        raise OnnxquantError(
            f"{name}: metadata {CLASSES_KEY} must be a JSON list of class names; write it again or remove it"
        )
    return classes


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OnnxquantError(f"{where}: not JSON ({error}); {_EXAMPLE}") from None


def _validate(fields: object, where: str) -> Preprocessing:
    try:
        return Preprocessing.model_validate(fields)
    except ValidationError as error:
        raise OnnxquantError(f"{where}: {first_invalid(error)}; {_EXAMPLE}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Keep the high byte, as pillow does for 16-bit colour files; its convert() would clip nearly all to white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"pixels of mode {image.mode} have no defined range; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def _resize(image: Image.Image, target: Sequence[int], interpolation: str) -> Image.Image:
    """`image` with its aspect ratio kept, so that it just covers `target` (height, width); rounded as timm rounds."""
    short, long = min(image.size), max(image.size)
    if target[0] == target[1]:
        size = [target[0] if side == short else int(target[0] * long / short) for side in image.size]
    else:
        ratio = min(image.height / target[0], image.width / target[1])
        size = [round(side / ratio) for side in image.size]
    if Image.MAX_IMAGE_PIXELS and size[0] * size[1] > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels is too thin: resized it would have {size[0]}x{size[1]}")
    return (
        image if size == list(image.size) else image.resize((size[0], size[1]), Image.Resampling[interpolation.upper()])
    )


_EXAMPLE = "expected for example " + json.dumps({"input_size": [224, 224], **PRESETS["imagenet"]}, sort_keys=True)
