"""Make tests/fixtures: exports of timm models with seeded weights, stored without them.

Runs in the export environment, from the repository's root::

    python -m tools.make_fixtures                # all
    python -m tools.make_fixtures mobilevit_xxs  # some
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxquant.export import Exporter, export
from tests.fixtures import RECIPE, fixture_path, tensors

# timm model -> the exporters that convert it, with a dynamic batch.
MODELS: dict[str, tuple[Exporter, ...]] = {
    "mobilevit_xxs": ("torchscript", "dynamo"),
    "mobilevitv2_050": ("torchscript", "dynamo"),
    "efficientformer_l1": ("torchscript", "dynamo"),
    "efficientformerv2_s0": ("torchscript", "dynamo"),
}
LARGEST_KEPT = 16  # elements
FEW = 4  # distinct values: a mask, which noise would make meaningless and xz makes small


def make_fixture(arch: str, exporter: Exporter) -> onnx.ModelProto:
    """Export `arch` with seeded weights and replace its larger float tensors by recipes."""
    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(export(arch, Path(folder) / "model.onnx", exporter=exporter, seed=0))
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
    for arch in sys.argv[1:] or MODELS:
        for exporter in MODELS[arch]:
            path = fixture_path(arch, exporter)
            packed = lzma.compress(make_fixture(arch, exporter).SerializeToString(deterministic=True), preset=9)
            path.write_bytes(packed)
            print(f"{path.name}: {len(packed) / 1e3:.1f} kB", flush=True)


if __name__ == "__main__":
    main()
