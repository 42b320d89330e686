"""For ``polygraphy run --data-loader-script``: real samples, images preprocessed as the model's metadata says.

``python -m onnxquant.polygraphy data_loader`` prints this file's path. Environment variables say what to load:

ONNXQUANT_MODEL: ONNX file whose inputs the samples are for; that of an engine where the engine is run.
ONNXQUANT_DATA: image folder or zip, .npz, .npy, polygraphy JSON or load_data() script.
ONNXQUANT_PREPROCESS: imagenet, unit or JSON, for images where the model itself doesn't say how they become its input.
ONNXQUANT_LIMIT: use so many samples, spread evenly over the data; all where it isn't set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxquant.errors import OnnxquantError
from onnxquant.polygraphy.errors import as_polygraphy_errors


def load_data() -> Iterator[dict[str, NDArray[Any]]]:
    """Yield one sample at a time (as many as a fixed batch axis says, the last one repeated to fill it)."""
    from onnxquant.calibration.dataset import batches, input_specs
    from onnxquant.cli.options import open_data
    from onnxquant.graph.model import read_proto

    with as_polygraphy_errors():
        model, source = Path(_variable("ONNXQUANT_MODEL")), _variable("ONNXQUANT_DATA")
        preprocess, limit = os.environ.get("ONNXQUANT_PREPROCESS"), os.environ.get("ONNXQUANT_LIMIT")
        if limit is not None and not (limit.isascii() and limit.isdigit()):
            raise OnnxquantError(f"ONNXQUANT_LIMIT={limit}: must be a number of samples")
        dataset = open_data(
            source, model, preprocess=preprocess, limit=int(limit) if limit else None, option="ONNXQUANT_DATA"
        )
        for batch in batches(dataset, 1, input_specs(read_proto(model))):
            yield batch.feeds


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise OnnxquantError(f"{name}: not set; {Path(__file__).name} needs ONNXQUANT_MODEL and ONNXQUANT_DATA")
    return value
