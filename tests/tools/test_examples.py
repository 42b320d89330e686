"""The examples in tools/examples run, and what they write does too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import attention, images, op_types, run

EXAMPLES = Path(__file__).parents[2] / "tools" / "examples"


def test_the_graphsurgeon_pipeline(tmp_path):
    pytest.importorskip("polygraphy")
    model = attention()
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", image=images(32))
    command = [sys.executable, str(EXAMPLES / "graphsurgeon_pipeline.py"), "model.onnx", "calib.npz", "build"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    stage, loader = (onnx.load(tmp_path / "build" / f"{name}.onnx") for name in ("stage", "loader"))
    assert [output.name for output in stage.graph.output] == ["probabilities"]
    assert op_types(stage).count("DequantizeLinear") == 2
    x = images(4)
    scores = run(model, image=x)[0]
    expected = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    assert np.abs(run(stage, image=x)[0] - expected).max() < 0.02
    assert op_types(loader).count("Log2QuantizeLinear") == 1
    assert np.abs(run(loader, image=x)[0] - scores).max() < 0.02
