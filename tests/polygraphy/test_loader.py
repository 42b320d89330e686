"""`QuantizeOnnx` goes between polygraphy's own loaders."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("polygraphy")

from polygraphy.backend.onnx import BytesFromOnnx, OnnxFromPath
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.exception import PolygraphyException

from onnxquant import rewrite
from onnxquant.polygraphy import QuantizeOnnx
from tests.graphs import attention, images, run
from tests.scripts import run_script


def test_it_takes_a_loader_and_gives_what_rewrite_gives(tmp_path):
    onnx.save(attention(), tmp_path / "model.onnx")
    quantize = QuantizeOnnx(OnnxFromPath(str(tmp_path / "model.onnx")), "efficientquant", images(32), target="tensorrt")
    assert quantize() == rewrite(attention(), calibration=images(32), target="tensorrt").model
    with OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(quantize))) as runner:
        outputs = runner.infer({"image": images(2)})
    assert np.abs(outputs["probabilities"] - run(attention(), image=images(2))[0]).max() < 0.02


def test_a_model_is_taken_as_it_is_and_left_so():
    model = attention()
    before = model.SerializeToString()
    assert QuantizeOnnx(model, "weights-only")() == rewrite(attention(), recipe="weights-only").model
    assert model.SerializeToString() == before


def test_bad_input_is_polygraphys_error_with_the_same_line():
    with pytest.raises(PolygraphyException, match="--recipe nothing: unknown; choose one of adfq-vit, easyquant"):
        QuantizeOnnx(attention(), "nothing")()


def python(code: str) -> str:
    return run_script(code).stdout.strip()


def test_onnxquant_does_not_import_polygraphy():
    code = "import sys, onnxquant.pipeline, onnxquant.cli, onnxquant.polygraphy; print('polygraphy' in sys.modules)"
    assert python(code) == "False"


def test_without_polygraphy_it_is_an_error_that_says_what_to_install():
    code = """
import sys
sys.modules["polygraphy"] = None
try:
    from onnxquant.polygraphy import QuantizeOnnx
except Exception as error:
    print(type(error).__name__, error)
"""
    said = "onnxquant.polygraphy.QuantizeOnnx needs polygraphy: pip install 'onnxquant[polygraphy]'"
    assert python(code) == f"OnnxquantError {said}"
