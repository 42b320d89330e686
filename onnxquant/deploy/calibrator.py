"""TensorRT's own calibration, for its implicit quantization from 8.6 to 10: the calibrator, and the cache it reads.

A calibration cache is a text: a header with TensorRT's version and the calibrator's algorithm, then a line a tensor
with the scale of its int8 codes, 32-bit IEEE 754 in big-endian hex::

    TRT-8601-EntropyCalibration2
    input: 3c010a14

NVIDIA does not document it. This is how ONNX Runtime's TensorRT provider reads it (``ReadDynamicRange``, which takes
127 times the scale for the tensor's range) and how NVIDIA's TAO Toolkit writes it (``calibration_cache_from_dict``).
TensorRT takes no cache that has another release's version in its header. A layer whose tensors have no line, because
TensorRT's parser made them up for example, stays in float.

TensorRT deprecated calibrators in 10.1 and removed them in 11; TensorRT-RTX never had any. Q/DQ nodes, which
``onnxquant rewrite --target tensorrt`` inserts, are what all of them share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxquant.calibration.batching import batches
from onnxquant.calibration.observers import MinMax
from onnxquant.calibration.ranges import Ranges
from onnxquant.calibration.samples import Dataset, Feed, InputSpec
from onnxquant.deploy.tensorrt import find_tensorrt
from onnxquant.errors import OnnxquantError

ALGORITHM = "EntropyCalibration2"
"""Of `IInt8EntropyCalibrator2`, the calibrator that NVIDIA recommends; a cache of another one is refused."""

LARGEST_CODE = 127

REMEDY = "quantize the model with Q/DQ nodes instead: onnxquant rewrite --target tensorrt"


def write_cache(ranges: Ranges, version: str) -> str:
    """The text of a calibration cache: every tensor's largest magnitude becomes the largest code.

    Args:
        ranges: from `onnxquant.calibrate`. Tensors that are always 0 are left out.
        version: of the TensorRT that is to read it, "8.6.1" or "10.3.0"; what follows the third number is ignored.

    Raises:
        OnnxquantError: this version has no calibrators.
    """
    lines = [cache_header(version)]
    for tensor in ranges.tensors:
        seen = ranges.observed(tensor, MinMax)
        largest = max(-seen.minimum, seen.maximum) if seen else 0
        with np.errstate(over="ignore"):
            scale = np.array(largest / LARGEST_CODE).astype(">f4")  # a numpy scalar would lose the byte order
        if 0 < scale < np.inf and tensor.isprintable():
            lines.append(f"{tensor}: {scale.tobytes().hex()}")
    return "\n".join(lines) + "\n"


def cache_header(version: str) -> str:
    """The first line of a cache, where `NV_TENSORRT_VERSION` stands: 8601 for 8.6.1, but 100300 for 10.3.0.

    Raises:
        OnnxquantError: this version has no calibrators.
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        raise OnnxquantError(f"TensorRT {version}: not a version; give three numbers, for example 8.6.1 or 10.3.0")
    major, minor, patch = map(int, match.groups())
    if not 8 <= major <= 10:
        raise OnnxquantError(f"TensorRT {version}: has no calibrators, only 8 to 10 have them; {REMEDY}")
    return f"TRT-{major * (1000 if major < 10 else 10000) + minor * 100 + patch}-{ALGORITHM}"


def read_cache(path: Path) -> dict[str, float]:
    """The scales in a calibration cache, by tensor.

    Raises:
        OnnxquantError: the file can't be read or is no calibration cache.
    """
    try:
        header, *lines = path.read_text("utf-8").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise OnnxquantError(f"{path}: can't be read ({reason}); give a calibration cache of TensorRT") from None
    if not re.fullmatch(r"TRT-\d+-\w+", header):
        raise OnnxquantError(f"{path}: not a calibration cache of TensorRT (its first line is {header[:40]!r})")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        match = re.fullmatch(r"(.+): ([0-9a-fA-F]{1,8})", line)
        scale = float(np.frombuffer(bytes.fromhex(match[2].zfill(8)), ">f4")[0]) if match else np.nan
        if not match or not np.isfinite(scale):
            raise OnnxquantError(f"{path}: line {number} is no tensor with its scale ({line[:40]!r}); make it again")
        scales[match[1]] = scale
    return scales


def calibrator(dataset: Dataset, inputs: Sequence[InputSpec], *, cache: Path | None = None, batch_size: int = 1) -> Any:
    """An `IInt8EntropyCalibrator2` over a data set, for TensorRT's builder or polygraphy's `CreateConfig`.

    It is polygraphy's `Calibrator`. The builder calibrates on a GPU; with a cache that exists it needs neither GPU time
    nor data.

    Args:
        dataset: samples for the model.
        inputs: of the model, from `input_specs`.
        cache: a cache to use where it exists and to write where it doesn't.
        batch_size: samples given at once where the model's batch axis is dynamic; what the calibration profile says.

    Returns:
        The calibrator. polygraphy lets go of its GPU memory when TensorRT has asked for all batches.

    Raises:
        OnnxquantError: TensorRT is 11 or later, TensorRT-RTX or not installed, or polygraphy isn't.
    """
    tensorrt = find_tensorrt()
    base = getattr(tensorrt.module, "IInt8EntropyCalibrator2", None)
    if base is None:
        raise OnnxquantError(f"{tensorrt.name}: has no calibrators, they ended with TensorRT 10; {REMEDY}")
    try:
        from polygraphy.backend.trt import Calibrator
    except ImportError:
        raise OnnxquantError("calibrator: needs polygraphy: pip install 'onnxquant[polygraphy]'") from None
    fixed = [
        replace(spec, shape=(batch_size, *spec.shape[1:]))
        if spec.shape and not isinstance(spec.shape[0], int)
        else spec
        for spec in inputs
    ]
    return Calibrator(_Feeds(dataset, fixed), cache=None if cache is None else str(cache), BaseClass=base)


@dataclass
class _Feeds:
    """Batches of one size that can be gone through again, as polygraphy does for every network."""

    dataset: Dataset
    inputs: Sequence[InputSpec]

    def __iter__(self) -> Iterator[Feed]:
        return (batch.feeds for batch in batches(self.dataset, 1, self.inputs))
