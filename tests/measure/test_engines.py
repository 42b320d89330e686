"""TensorRT engines are timed beside ONNX files.

Without a GPU no engine can be run: a stand-in takes the place of TensorRT in the process that would run it.
"""

import inspect
import os
from pathlib import Path

import numpy as np
import onnx
import polygraphy.cuda
import pytest

from onnxquant.calibration.samples import InputSpec
from onnxquant.deploy.build import build_engine
from onnxquant.deploy.tensorrt import has_gpu
from onnxquant.errors import OnnxquantError
from onnxquant.measure import engines as module
from onnxquant.measure.bench import bench
from onnxquant.measure.engines import EngineInput, engine_inputs, is_engine, require_in_profile, run_engine
from onnxquant.measure.process import WorkerProcess
from tests.graphs import parse
from tests.measure.stand_in import tensorrt_rtx as stand_in
from tests.measure.stand_in.polygraphy import cuda as stand_in_cuda

real = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")

RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"
X = EngineInput(InputSpec("x", (None, 4), np.dtype("float32")), (2, 4), (3, 4), (6, 4))


@pytest.fixture
def plan(tmp_path):
    """An engine of TensorRT-RTX."""
    (tmp_path / "a.plan").write_bytes(build_engine(parse(RELU)).plan)
    return tmp_path / "a.plan"


@pytest.fixture
def runs(monkeypatch):
    """The stand-in in place of TensorRT and CUDA."""
    monkeypatch.setenv("PYTHONPATH", str(Path(stand_in.__file__).parent), prepend=os.pathsep)
    monkeypatch.setattr(module, "has_gpu", lambda: True)


@pytest.mark.parametrize(
    "name", ["ILogger", "IExecutionContext", "ICudaEngine", "Runtime", "TensorIOMode", "TensorLocation", "EngineStat"]
)
def test_the_stand_in_has_nothing_that_the_real_module_has_not(name):
    public = {key for key in vars(getattr(stand_in, name)) if not key.startswith("_")}
    assert public <= set(dir(getattr(real, name)))


def test_the_stand_in_for_cuda_takes_what_the_real_one_takes():
    for name, function in inspect.getmembers(stand_in_cuda.Cuda, inspect.isfunction):
        if not name.startswith("_"):
            accepted = list(inspect.signature(getattr(polygraphy.cuda.Cuda, name)).parameters)
            assert list(inspect.signature(function).parameters) == accepted[: function.__code__.co_argcount]


@pytest.mark.parametrize("name", ["a.plan", "a.engine", "A.TRT"])
def test_engines_are_known_by_their_ending(name):
    assert is_engine(Path(name))
    assert not is_engine(Path(f"{name}.onnx"))


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_the_real_runtime_says_in_a_line_why_it_can_not_load_an_engine(plan):
    with (
        WorkerProcess(plan, 60) as process,
        pytest.raises(OnnxquantError, match=r"a\.plan: TensorRT can't load it: Cuda Runtime .*CUDA driver") as raised,
    ):
        process.ask("load_engine", str(plan), "tensorrt_rtx")
    assert "\n" not in str(raised.value)
    assert "/_src" not in str(raised.value)


@pytest.mark.skipif(not has_gpu(), reason="there is no GPU")
def test_the_real_runtime_runs_an_engine(plan):
    (x,) = engine_inputs(plan)
    assert (x.spec.name, x.spec.shape, x.least, x.best, x.most) == ("x", (None, 4), (1, 4), (1, 4), (8, 4))
    (timing,) = bench([plan], [{"x": np.ones((8, 4), np.float32)}], rounds=3)
    assert timing.batch == 8
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run_engine(plan, [{"x": x}])[0]["y"], np.maximum(x, 0))
    assert timing.runtime.startswith("TensorRT-RTX")


def test_an_engine_tells_its_inputs(plan, runs):
    assert engine_inputs(plan) == [X]


def test_an_engine_is_timed_beside_the_onnx_file_that_it_was_built_from(plan, runs):
    onnx.save(parse(RELU), plan.with_name("a.onnx"))
    feed = {"x": np.ones((3, 4), np.float32)}
    model, engine = bench([plan.with_name("a.onnx"), plan], [feed, feed], rounds=3, warmup=1)
    assert model.runtime == "ONNX Runtime"
    assert engine.runtime.startswith("TensorRT-RTX 1.")
    assert (engine.batch, engine.file_bytes, engine.weight_bytes) == (3, plan.stat().st_size, 123)
    assert len(engine.rounds) == 3
    assert engine.load_seconds > 0
    assert engine.ratio > 0


def test_an_engine_gives_the_outputs_of_each_feed(plan, runs):
    feeds = [{"x": np.full((rows, 4), rows, np.float32)} for rows in (2, 6, 3)]
    outputs = run_engine(plan, feeds)
    assert [set(each) for each in outputs] == [{"y"}] * 3
    for each, feed in zip(outputs, feeds, strict=True):
        np.testing.assert_array_equal(each["y"], feed["x"] + 1)


def test_an_engine_that_can_not_be_loaded_says_what_tensorrt_says(plan, runs):
    plan.write_bytes(plan.read_bytes() + b"broken")
    with pytest.raises(OnnxquantError, match=r"a\.plan: TensorRT can't load it: Serialization \(Bad\.\)$"):
        engine_inputs(plan)


def test_the_batch_is_free_and_other_axes_are_what_the_engine_was_optimized_for():
    image = EngineInput(
        InputSpec("x", (None, 3, None, None), np.dtype("float32")), (1, 3, 8, 8), (2, 3, 9, 9), (4, 3, 12, 12)
    )
    assert image.spec_for({}).shape == (None, 3, 9, 9)
    assert image.spec_for({"x": [1, 3, 12, 12]}).shape == (None, 3, None, None)


@pytest.mark.parametrize(("rows", "fits"), [(1, False), (2, True), (6, True), (7, False)])
def test_what_an_engine_does_not_take_is_an_error_before_it_is_run(rows, fits):
    feed = {"x": np.ones((rows, 4), np.float32)}
    if fits:
        require_in_profile(Path("a.plan"), [X], feed)
        return
    with pytest.raises(OnnxquantError, match=rf"a\.plan: input x can't be {rows}x4, the engine takes 2x4 to 6x4; .*--"):
        require_in_profile(Path("a.plan"), [X], feed)
