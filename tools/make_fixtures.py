"""Make tests/fixtures: exports of the zoo's models with seeded weights, stored without them.

Runs in the export environment, from the repository's root::

    python tools/make_fixtures.py                # all
    python tools/make_fixtures.py mobilevit_xxs  # some
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.append(str(Path(__file__).parents[1]))  # last, so that `onnxquant` is the installed package

from onnxquant.export import DEFAULT_OPSET, Exporter, export
from onnxquant.zoo import load_zoo
from tests.fixtures import RECIPE, fixture_path, tensors
from tools.mobile_former import NAME as MOBILE_FORMER
from tools.mobile_former import export_mobile_former

LARGEST_KEPT = 16  # elements
FEW = 4  # distinct values: a mask, which noise would make meaningless and xz makes small


def make_fixture(name: str, exporter: Exporter) -> onnx.ModelProto:
    """Export the zoo's model `name` with seeded weights and replace its larger float tensors by recipes."""
    if name == MOBILE_FORMER:
        model = export_mobile_former(exporter)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = onnx.load(export(name, Path(folder) / "model.onnx", exporter=exporter, seed=0))
    for tensor in tensors(model):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.FLOAT and values.size > LARGEST_KEPT:
            if 1 < len(np.unique(values)) <= FEW:
                continue
            tensor.doc_string = RECIPE + recipe(values)
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)
    return model


def recipe(values: np.ndarray) -> str:
    """Mean, standard deviation and, where no value is negative, a plus sign: as of a trained model, not a fresh one.

    A fresh bias is zero, a running variance one and a LayerScale 1e-5, which hides mistakes and whole blocks; and the
    small weights of fresh linears make every attention uniform.
    """
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    if values.min() == values.max():
        if mean == 0:
            std = 0.1
        elif abs(mean) < 0.01:
            mean, std = 0.2, 0.05
        else:
            std = abs(mean) / 10
    elif values.ndim >= 2:
        fan_in = min(values.shape) if values.ndim == 2 else values[0].size
        std = max(std, fan_in**-0.5)
    return f"{mean:.4g} {std:.4g}{' +' if mean > 0 and values.min() >= 0 else ''}"


def main() -> None:
    for name in sys.argv[1:] or load_zoo():
        for exporter in DEFAULT_OPSET:
            path = fixture_path(name, exporter)
            packed = lzma.compress(make_fixture(name, exporter).SerializeToString(deterministic=True), preset=9)
            path.write_bytes(packed)
            print(f"{path.name}: {len(packed) / 1e3:.1f} kB", flush=True)


if __name__ == "__main__":
    main()
