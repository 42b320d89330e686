"""The example pass runs in a real workflow of Olive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxquant import rewrite
from tests.graphs import attention, images, op_types, run

pytestmark = pytest.mark.export

EXAMPLE = Path(__file__).parents[2] / "tools" / "examples" / "olive_pass.py"


def test_a_workflow_with_the_pass_writes_what_rewrite_gives(tmp_path):
    pytest.importorskip("olive")
    onnx.save(attention(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", image=images(32))
    command = [sys.executable, str(EXAMPLE), "model.onnx", "calib.npz", "out"]
    environment = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    by_olive = onnx.load(tmp_path / "out" / "model.onnx")
    by_onnxquant = rewrite(attention(), calibration=images(32)).model
    assert op_types(by_olive) == op_types(by_onnxquant)
    np.testing.assert_array_equal(run(by_olive, image=images())[0], run(by_onnxquant, image=images())[0])
