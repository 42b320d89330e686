"""polygraphy's tools take rewritten files, and what they make of them still runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("polygraphy")

from onnxquant import rewrite, save
from onnxquant.calibration.dataset import batches, input_specs, open_dataset
from onnxquant.preprocessing import Preprocessing
from tests.graphs import initializers, op_types, run
from tests.polygraphy.commands import polygraphy

DEMO = Path(__file__).parents[2] / "models" / "demo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rewritten demo."""
    folder = tmp_path_factory.mktemp("demo")
    result = rewrite(DEMO / "mobilevit_xxs_digits.onnx", calibration=DEMO / "digits_train.npz", target="tensorrt")
    save(result.model, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Eight of them as the demo takes them: (8, 3, 64, 64)."""
    model = onnx.load(DEMO / "mobilevit_xxs_digits.onnx")
    preprocessing = Preprocessing.from_metadata({entry.key: entry.value for entry in model.metadata_props}, "demo")
    specs = input_specs(model)
    return next(batches(open_dataset(DEMO / "digits.npz", specs, preprocessing, limit=8), 8, specs)).feeds["input"]


def weights(model: onnx.ModelProto) -> int:
    return sum(values.dtype == np.int8 and values.ndim == 4 for values in initializers(model).values())


def test_sanitize_leaves_the_weights_integers_and_the_outputs_equal(folder, digits):
    polygraphy("surgeon", "sanitize", "model.onnx", "--fold-constants", "-o", "sanitized.onnx", cwd=folder)
    before, after = onnx.load(folder / "model.onnx"), onnx.load(folder / "sanitized.onnx")
    assert weights(after) == weights(before) == 35
    assert op_types(after).count("Log2QuantizeLinear") == 9
    np.testing.assert_allclose(run(after, input=digits)[0], run(before, input=digits)[0], atol=1e-4)


def test_an_extracted_part_gives_the_same_as_inside_the_model(folder, digits):
    model = onnx.load(folder / "model.onnx")
    dequantized = next(node.output[0] for node in model.graph.node if node.op_type == "Log2DequantizeLinear")
    polygraphy(
        *["surgeon", "extract", "model.onnx", "-o", "part.onnx"],
        *["--inputs", "input:[batch,3,64,64]:float32", "--outputs", f"{dequantized}:float32"],
        cwd=folder,
    )
    part = onnx.load(folder / "part.onnx")
    assert len(part.graph.node) < len(model.graph.node) / 2
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(dequantized))
    np.testing.assert_array_equal(run(part, input=digits)[0], run(model, input=digits)[1])


def test_inspect_model_lists_the_log2_nodes(folder):
    printed = polygraphy("inspect", "model", "model.onnx", "--show", "layers", cwd=folder)
    assert printed.count("[Op: onnxquant.Log2QuantizeLinear]") + printed.count("[Op: Log2QuantizeLinear]") == 9


@pytest.fixture
def rtx() -> dict[str, int]:
    """What makes polygraphy use TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    return {"POLYGRAPHY_USE_TENSORRT_RTX": 1}


def test_inspect_capability_finds_nothing_that_tensorrt_lacks(folder, rtx):
    assert "Graph is fully supported by TensorRT" in polygraphy(
        "inspect", "capability", "model.onnx", "-o", "capability", cwd=folder, **rtx
    )


def test_convert_builds_an_engine_for_another_gpu(folder, rtx):
    polygraphy(
        *["convert", "model.onnx", "--convert-to", "trt", "--compute-capabilities", "8.6", "-o", "model.plan"],
        *["--trt-min-shapes", "input:[1,3,64,64]"],
        *["--trt-opt-shapes", "input:[4,3,64,64]"],
        *["--trt-max-shapes", "input:[8,3,64,64]"],
        cwd=folder,
        **rtx,
    )
    assert (folder / "model.plan").stat().st_size > 1_000_000
