"""`onnxquant build` on the command line, with the real TensorRT-RTX."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from onnxquant.cli.build import build_command
from onnxquant.deploy.tensorrt import has_gpu
from tests.cli.invoking import Verb
from tests.graphs import attention, parse

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")

invoke = Verb(build_command)
RTX = ("--runtime", "tensorrt-rtx")
DEMO = Path(__file__).parents[2] / "models" / "demo" / "mobilevit_xxs_digits.onnx"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(attention(), "a.onnx")
    return tmp_path


def test_an_engine_is_written_beside_the_model_and_described(folder):
    before = (folder / "a.onnx").read_bytes()
    result = invoke("a.onnx", "--compute-capability", "8.6", "--compute-capability", "12.0", *RTX)
    assert result.exit_code == 0, result.output
    size = (folder / "a.plan").stat().st_size
    lines = [line.split("  ", 1) for line in result.stdout.splitlines()]
    rows = {name.strip(): text.strip() for name, text in lines}
    assert rows["runtime"].startswith("TensorRT-RTX 1.")
    assert rows["GPUs"] == "compute capability 8.6, 12.0"
    assert rows["input image"] == "1x3x8x8 to 8x3x8x8, optimized for 1x3x8x8"
    assert rows["parse"].endswith(" s")
    assert rows["build"].endswith(" s")
    weights = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in attention().graph.initializer)
    assert rows["size"] == f"{size:,} bytes, from {weights:,} bytes of weights in the ONNX file"
    assert rows["written"] == "a.plan"
    assert result.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "a.plan"]
    assert (folder / "a.onnx").read_bytes() == before


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_is_said_that_the_engine_was_not_run(folder):
    assert "not run      there is no GPU here" in invoke("a.onnx", *RTX).stdout
    document = json.loads(invoke("a.onnx", "--json", *RTX).stdout)
    assert document["not_run"] == "there is no GPU here"
    assert document["load_ms"] is document["median_ms"] is None


@pytest.mark.skipif(not has_gpu(), reason="there is no GPU")
def test_with_a_gpu_the_engine_is_loaded_and_run(folder):
    document = json.loads(invoke("a.onnx", "--json", *RTX).stdout)
    assert document["not_run"] is None
    assert document["load_ms"] > 0
    assert document["median_ms"] > 0


def test_json_is_all_there_is_on_stdout(folder):
    document = json.loads(invoke("a.onnx", "-o", "b.engine", "--batch", "2:3:4", "--json", *RTX).stdout)
    assert document["output"] == "b.engine"
    assert document["profile"] == {"image": [[2, 3, 8, 8], [3, 3, 8, 8], [4, 3, 8, 8]]}
    assert document["engine_bytes"] == (folder / "b.engine").stat().st_size
    assert document["warnings"] == []


def test_one_size_is_all_three(folder):
    onnx.save(parse("g (float[N, C] x) => (float[N, C] y) { y = Relu (x) }"), "free.onnx")
    shape = json.loads(invoke("free.onnx", "--shape", "x=2x3", "--json", *RTX).stdout)["profile"]
    assert shape == {"x": [[2, 3]] * 3}
    given = json.loads(invoke("free.onnx", "--shape", "x=1x3:2x3:4x6", "--json", *RTX).stdout)["profile"]
    assert given == {"x": [[1, 3], [2, 3], [4, 6]]}
    batch = json.loads(invoke("a.onnx", "--batch", "2", "--workspace", "256M", "--json", *RTX).stdout)["profile"]
    assert batch == {"image": [[2, 3, 8, 8]] * 3}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--batch", "1:2", "--batch 1:2: must be MIN:OPT:MAX, for example 1:4:8, or one size"),
        ("--batch", "0", "--batch 0: must be MIN:OPT:MAX"),
        ("--batch", "x", "--batch x: must be MIN:OPT:MAX"),
        ("--shape", "image=1x3x8x8:2x3x8x8", "--shape image=1x3x8x8:2x3x8x8: must be INPUT=MIN:OPT:MAX"),
        ("--shape", "1x3x8x8", "--shape 1x3x8x8: must be INPUT=MIN:OPT:MAX"),
        ("--shape", "image=1x3x9x9", "--shape image=1x3x9x9: doesn't fit input image float32 (N, 3, 8, 8) of a.onnx"),
        ("--workspace", "1T", "--workspace 1T: must be bytes, with K, M or G behind, for example 1G"),
        ("--workspace", "0", "--workspace 0: must be bytes"),
        ("--compute-capability", "9.0", "--compute-capability 9.0: "),
        ("--timing-cache", "cache", "--timing-cache cache: TensorRT-RTX 1."),
        ("-o", "b.onnx", "-o b.onnx: must end in .engine, .plan, .trt, as TensorRT engines do"),
        ("-o", "a.onnx", "-o a.onnx: is the input itself (the model); give another path"),
        ("-o", "nowhere/a.plan", "-o nowhere/a.plan: can't be written"),
    ],
)
def test_an_option_that_is_wrong_is_named_and_nothing_is_written(folder, option, value, message):
    assert invoke.error("a.onnx", option, value, *RTX).startswith(message)
    assert [path.name for path in folder.iterdir()] == ["a.onnx"]


def test_a_model_that_is_none_or_refused_is_named_and_nothing_is_written(folder):
    assert invoke.error("b.onnx", *RTX) == "b.onnx: no such file"
    onnx.save(parse("g (float[2, 2, 2] x) => (float[2] y) { y = Det (x) }"), "det.onnx")
    assert invoke.error("det.onnx", *RTX).startswith("det.onnx: tensorrt-rtx refuses node Det of y: ")
    assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "det.onnx"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into the process")
def test_an_interrupted_build_ends_with_130_and_writes_nothing(folder):
    command = [sys.executable, "-m", "onnxquant", "build", DEMO, "-o", "a.plan", *RTX]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while "libtensorrt_rtx" not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, b"", b"")
    assert [path.name for path in folder.iterdir()] == ["a.onnx"]
