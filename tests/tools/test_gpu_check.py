"""tools/gpu_check.py does what this machine can do, and says what it can't."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxquant.deploy.tensorrt import has_gpu
from onnxquant.measure import engines
from tests.graphs import attention, images, parse
from tests.measure.stand_in import tensorrt_rtx as stand_in

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "gpu_check.py"
DEMO = ROOT / "models" / "demo"
WITHOUT_TENSORRT = """
import runpy, sys
sys.modules["tensorrt"] = sys.modules["tensorrt_rtx"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_tool(*arguments, options=()):
    command = [sys.executable, *options, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(arguments[0]).parent, check=False)


def table(text):
    """Cells by column, by variant."""
    columns, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| " in line)
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}


@pytest.fixture
def files(tmp_path):
    onnx.save(attention(), tmp_path / "a.onnx")
    np.savez(tmp_path / "calib.npz", image=images(32))
    return tmp_path / "a.onnx", "--calib", tmp_path / "calib.npz"


@pytest.mark.slow
@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_engines_are_built_and_it_is_said_that_none_was_run(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    before = (DEMO / "mobilevit_xxs_digits.onnx").read_bytes()
    done = run_tool(
        DEMO / "mobilevit_xxs_digits.onnx", "--calib", DEMO / "digits_train.npz", "--recipes", "weights-only",
        "--runtime", "tensorrt-rtx", "--work", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert list(rows) == ["fp32", "fp16", "weights-only", "weights-only-fp16"]
    for row in rows.values():
        assert float(row["build s"]) > 0
        assert float(row["engine MB"]) > 1
        unrun = ("engine to ONNX Runtime", "engine to fp32", "latency ms", "load ms")
        assert [row[column] for column in unrun] == ["not run"] * 4
    assert rows["fp32"]["ONNX Runtime to fp32"] == "equal, 100.0%"
    sqnr, weights = (
        {variant: float(row[column].split()[0]) for variant, row in rows.items() if variant != "fp32"}
        for column in ("ONNX Runtime to fp32", "weights MB")
    )
    assert sqnr["fp16"] > 60
    assert sqnr["weights-only"] > 45
    assert sqnr["weights-only-fp16"] > 45
    assert weights["weights-only-fp16"] < weights["fp16"] < weights["weights-only"]
    said = done.stdout.splitlines()[-1]
    assert said.startswith("Nothing was run on a GPU: there is no NVIDIA GPU here; TensorRT-RTX 1.")
    assert {path.name for path in tmp_path.iterdir()} == {
        "fp32.plan", "fp16.onnx", "fp16.plan", "weights-only.onnx", "weights-only.plan", "weights-only-fp16.onnx",
        "weights-only-fp16.plan",
    }  # fmt: skip
    assert (DEMO / "mobilevit_xxs_digits.onnx").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(not has_gpu(), reason="there is no GPU")
def test_with_a_gpu_that_tensorrt_supports_every_cell_is_filled(files):
    done = run_tool(*files)
    assert done.returncode == 0, done.stderr
    if "Nothing was run on a GPU: " in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    for row in table(done.stdout).values():
        assert "not run" not in row.values()
        assert row["engine to ONNX Runtime"] == "equal" or float(row["engine to ONNX Runtime"].split()[0]) > 30


def test_where_engines_run_they_are_compared_and_timed(tmp_path, monkeypatch, capsys):
    """The stand-in for TensorRT's runtime adds 1, whatever the engine."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    monkeypatch.setenv("PYTHONPATH", str(Path(stand_in.__file__).parent), prepend=os.pathsep)
    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    tool = runpy.run_path(str(TOOL))
    tool["find_runtime"].__globals__["gpu_compute_capability"] = lambda: "8.6"
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Add (x, c) }", c=np.full(4, 1.01, np.float32))
    onnx.save(model, tmp_path / "a.onnx")
    np.savez(tmp_path / "held.npz", x=np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    options = ["--held", str(tmp_path / "held.npz"), "--recipes", "", "--runtime", "tensorrt-rtx"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path / "a.onnx"), *options])
    tool["main"]()
    said = capsys.readouterr().out
    assert ", TensorRT-RTX 1." in said
    assert said.endswith("|\n")
    rows = table(said)
    assert list(rows) == ["fp32", "fp16"]
    for row in rows.values():
        assert 40 < float(row["engine to fp32"].split()[0]) < 45  # 0.01 from values of size 1.4
        assert float(row["latency ms"]) >= 0
        assert float(row["load ms"]) >= 0
    assert rows["fp32"]["engine to fp32"] == rows["fp32"]["engine to ONNX Runtime"]


def test_without_tensorrt_the_files_are_compared_and_it_is_said_what_to_install(files):
    done = run_tool(*files, "--recipes", "efficientquant", options=("-c", WITHOUT_TENSORRT))
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert list(rows) == ["fp32", "fp16", "efficientquant", "efficientquant-fp16"]
    for row in rows.values():
        assert row["ONNX Runtime to fp32"].endswith("100.0%")
        assert row["build s"] == row["engine MB"] == row["latency ms"] == "not run"
    assert done.stdout.splitlines()[-1] == (
        "No engine was built, and nothing was run on a GPU: neither TensorRT nor TensorRT-RTX is installed; install it "
        "with pip install 'onnxquant[tensorrt-rtx]', or NVIDIA's tensorrt"
    )


def test_a_gpu_that_tensorrt_rtx_does_not_support_is_named():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    find_runtime = runpy.run_path(str(TOOL))["find_runtime"]
    find_runtime.__globals__["gpu_compute_capability"] = lambda: "9.0"
    tensorrt, gpu, (said,) = find_runtime("tensorrt-rtx")
    assert (tensorrt.is_rtx, gpu) == (True, None)
    assert "the one here has compute capability 9.0, TensorRT-RTX 1." in said
    find_runtime.__globals__["gpu_compute_capability"] = lambda: "8.9"
    assert find_runtime("tensorrt-rtx")[1:] == ("8.9", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipes", "nosuch"), "--recipe nosuch: unknown; choose one of "),
        (("--work", "nowhere"), "--work nowhere/fp32.onnx: can't be written"),
    ],
)
def test_an_option_that_is_wrong_is_named(files, arguments, message):
    done = run_tool(*files, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stdout == ""


def test_data_is_never_made_up(files):
    done = run_tool(files[0])
    assert done.returncode == 2
    assert "there is no data to run: give --calib or --held" in done.stderr
