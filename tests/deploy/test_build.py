"""ONNX models become TensorRT engines: with the real parser and ahead-of-time builder of TensorRT-RTX."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxquant import rewrite
from onnxquant.deploy.build import build_engine
from onnxquant.deploy.profiles import profile_shapes
from onnxquant.errors import OnnxquantError
from tests.graphs import attention, images, parse

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")

DEMO = Path(__file__).parents[2] / "models" / "demo" / "mobilevit_xxs_digits.onnx"
RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"
FREE = "g (float[N, C, H, W] x, float[M] z) => (float[N, C, H, W] y) { y = Add (x, z) }"


def refusal(*arguments, **options):
    with pytest.raises(OnnxquantError) as raised:
        build_engine(*arguments, runtime="tensorrt-rtx", **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_demo_is_built_from_its_file_and_says_what_it_is():
    engine = build_engine(DEMO, runtime="tensorrt-rtx", compute_capabilities=["8.6"])
    assert engine.plan.startswith(b"vtrt")
    assert engine.runtime.startswith("TensorRT-RTX 1.")
    assert engine.compute_capabilities == ("8.6",)
    assert engine.profile == {"input": ((1, 3, 64, 64), (1, 3, 64, 64), (8, 3, 64, 64))}
    assert 0 < engine.parse_seconds < engine.build_seconds < 60
    assert 3_000_000 < engine.weight_bytes < DEMO.stat().st_size < len(engine.plan)
    assert engine.warnings == ()


def test_quantized_weights_stay_small_in_the_engine():
    weights = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    text = "g (float[1, 512, 8, 8] x) => (float[1, 512, 8, 8] y) { y = Conv (x, w) }"
    proto = parse(text, w=weights[:, :, None, None])
    floats = build_engine(proto, runtime="tensorrt-rtx")
    integers = build_engine(rewrite(proto, recipe="weights-only", target="tensorrt").model, runtime="tensorrt-rtx")
    assert floats.weight_bytes == 512 * 512 * 4
    assert integers.weight_bytes < 512 * 512 * 1.1
    assert len(floats.plan) - len(integers.plan) > 512 * 512 * 2


def test_functions_are_built_too():
    result = rewrite(attention(), calibration=images(32), target="tensorrt", min_sqnr=0)
    assert result.model.functions
    assert build_engine(result.model, runtime="tensorrt-rtx").plan


def test_a_static_model_takes_no_profile():
    engine = build_engine(parse(RELU.replace("N", "3")), runtime="tensorrt-rtx")
    assert engine.profile == {}
    assert engine.plan


@pytest.mark.parametrize("capabilities", [["8.6", "8.9", "12.0"], []])
def test_an_engine_can_be_built_for_several_gpus(capabilities):
    engine = build_engine(attention(), compute_capabilities=capabilities, runtime="tensorrt-rtx")
    assert engine.compute_capabilities == tuple(capabilities)
    assert engine.plan


@pytest.mark.parametrize("capability", ["9.0", "86", "x"])
def test_a_gpu_that_there_is_none_of_is_an_error(capability):
    assert refusal(parse(RELU), compute_capabilities=["8.6", capability]).startswith(
        f"--compute-capability {capability}: "
    )


def test_a_model_with_external_data_is_read_from_its_file(tmp_path):
    onnx.save(attention(), tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    inside = build_engine(attention(), runtime="tensorrt-rtx")
    outside = build_engine(tmp_path / "a.onnx", runtime="tensorrt-rtx")
    assert outside.weight_bytes == inside.weight_bytes
    assert outside.plan
    (tmp_path / "a.bin").unlink()
    assert refusal(tmp_path / "a.onnx").startswith(f"{tmp_path / 'a.onnx'}: its external data can't be read")


def test_shapes_and_batch_go_into_the_profile():
    engine = build_engine(parse(RELU), batch=(2, 3, 5), runtime="tensorrt-rtx")
    assert engine.profile == {"x": ((2, 4), (3, 4), (5, 4))}
    shapes = {"x": [(1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 16, 16)], "z": [(1,), (1,), (1,)]}
    engine = build_engine(parse(FREE), shapes=shapes, runtime="tensorrt-rtx")
    assert engine.profile == {name: tuple(given) for name, given in shapes.items()}
    assert engine.plan


def test_the_image_size_comes_from_the_models_own_preprocessing():
    proto = parse("g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }")
    with pytest.raises(OnnxquantError, match=r"a\.onnx: input x .* dynamic axes; give its shape, .*--shape x=1x3x"):
        profile_shapes(proto, "a.onnx")
    metadata = '{"input_size": [6, 8], "crop_pct": 1, "interpolation": "box", "mean": [0, 0, 0], "std": [1, 1, 1]}'
    helper.set_model_props(proto, {"onnxquant.preprocessing": metadata})
    assert profile_shapes(proto, "a.onnx", (1, 2, 4)) == {"x": ((1, 3, 6, 8), (2, 3, 6, 8), (4, 3, 6, 8))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": {"x": [(1, 5)] * 3}}, "--shape x=1x5: doesn't fit input x float32 (N, 4) of g"),
        ({"shapes": {"y": [(1, 4)] * 3}}, "--shape y: g has no such input, only x"),
        (
            {"shapes": {"x": [(4, 4), (1, 4), (8, 4)]}},
            "--shape x=4x4:1x4:8x4: must be minimum, optimum and maximum, in this order",
        ),
        ({"batch": (4, 2, 8)}, "--batch 4:2:8: must be minimum, optimum and maximum, in this order"),
    ],
)
def test_shapes_that_are_wrong_are_named(options, message):
    assert refusal(parse(RELU), **options) == message


def test_a_batch_for_a_static_model_is_an_error():
    message = "--batch 1:2:4: no input of g has a dynamic first axis; leave it out"
    assert refusal(parse(RELU.replace("N", "3")), batch=(1, 2, 4)) == message


def test_a_model_that_would_be_refused_names_the_node_before_tensorrt_sees_it():
    result = rewrite(attention(), calibration=images(32), target="onnxruntime")
    message = refusal(result.model)
    assert "refuses node stem_weight_DequantizeLinear: " in message
    assert message.startswith("hybrid: tensorrt-rtx ")


def test_what_the_builder_refuses_is_said_without_places_in_its_source():
    message = refusal(attention(), workspace=1, compute_capabilities=["8.6"])
    assert message.startswith("hybrid: TensorRT-RTX 1.")
    assert "can't build it: " in message
    assert "workspace" in message
    assert "/_src" not in message


def test_a_workspace_that_is_large_enough_is_kept_to():
    assert build_engine(attention(), workspace=2**28, runtime="tensorrt-rtx").plan


def test_a_timing_cache_is_for_full_tensorrt_only(tmp_path):
    message = refusal(parse(RELU), timing_cache=tmp_path / "cache")
    assert message.startswith(f"--timing-cache {tmp_path / 'cache'}: TensorRT-RTX 1.")
    assert message.endswith("leave it out")
    assert not list(tmp_path.iterdir())


def test_progress_grows_to_the_whole():
    told = []
    build_engine(attention(), runtime="tensorrt-rtx", progress=lambda done, total: told.append((done, total)))
    done = [step for step, _ in told]
    assert {total for _, total in told} == {1000}
    assert done == sorted(set(done))
    assert len(done) > 10
    assert done[-1] == 1000


def test_an_error_while_progress_is_told_ends_the_build():
    def fail(done, total):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_engine(attention(), runtime="tensorrt-rtx", progress=fail)


def test_an_interrupt_ends_the_build():
    told = []

    def interrupt(done, total):
        told.append(done)
        if len(told) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(DEMO, runtime="tensorrt-rtx", progress=interrupt)
    assert told[-1] < 1000
    assert build_engine(attention(), runtime="tensorrt-rtx").plan  # the next one is not harmed


@pytest.mark.parametrize(
    ("missing", "runtime", "message"),
    [
        (
            ["tensorrt", "tensorrt_rtx"],
            None,
            "neither TensorRT nor TensorRT-RTX is installed; install it with pip install 'onnxquant[tensorrt-rtx]', or "
            "NVIDIA's tensorrt",
        ),
        (
            ["tensorrt_rtx"],
            "tensorrt-rtx",
            "tensorrt-rtx is not installed; install it with pip install 'onnxquant[tensorrt-rtx]'",
        ),
        (["tensorrt"], "tensorrt", "tensorrt is not installed; install it with pip install 'onnxquant[tensorrt]'"),
    ],
)
def test_a_tensorrt_that_is_missing_is_an_error_that_says_what_to_install(missing, runtime, message):
    script = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
from pathlib import Path
from onnxquant.deploy.build import build_engine
from onnxquant.errors import OnnxquantError
try:
    build_engine(Path("a.onnx"), runtime={runtime!r})
except OnnxquantError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == message


def test_the_first_tensorrt_that_can_be_imported_is_used_and_a_broken_one_is_said_to_be(tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    script = """
from onnxquant.deploy.tensorrt import find_tensorrt
from onnxquant.errors import OnnxquantError
print(find_tensorrt().name)
try:
    find_tensorrt("tensorrt")
except OnnxquantError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("TensorRT-RTX 1.")
    assert second == ("tensorrt is installed, but can't be imported: libnvinfer.so.10: cannot open shared object file")


def test_full_tensorrt_that_is_too_old_is_an_error(tmp_path):
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.5.3.1'")
    script = """
from onnxquant.deploy.tensorrt import find_tensorrt
from onnxquant.errors import OnnxquantError
try:
    find_tensorrt()
except OnnxquantError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "TensorRT 8.5.3 is too old, onnxquant needs 8.6 or later; upgrade tensorrt\n"
