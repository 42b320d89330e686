"""TensorRT's calibration cache, and its calibrator, which ended with TensorRT 10."""

import json
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxquant.calibration.ranges import Ranges
from onnxquant.deploy.calibrator import cache_header, read_cache, write_cache
from onnxquant.errors import OnnxquantError
from onnxquant.observation import calibrate
from tests.graphs import attention, images
from tests.scripts import PRELUDE, run_script

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"


def ranges_of(**bounds):
    tensors = {name: {"MinMax": {"minimum": low, "maximum": high}} for name, (low, high) in bounds.items()}
    return Ranges(model="a.onnx", fingerprint="", recipe="efficientquant", samples=1, tensors=tensors)


def test_a_line_is_a_tensor_and_the_big_endian_hex_of_its_scale():
    text = write_cache(ranges_of(input=(-0.5, 1.0), relu=(0.0, 254.0), tanh=(-127.0, 3.0)), "8.6.1")
    assert text == "TRT-8601-EntropyCalibration2\ninput: 3c010204\nrelu: 40000000\ntanh: 3f800000\n"
    assert struct.unpack(">f", bytes.fromhex("3c010204"))[0] == np.float32(1 / 127)


def test_a_cache_that_tensorrt_wrote_is_read(tmp_path):
    """Lines of caches that TensorRT 7.1 and 8.5 wrote, as their users published them."""
    (tmp_path / "c").write_text(
        "TRT-8510-EntropyCalibration2\nx: 4000890a\n(Unnamed Layer* 8) [Constant]_output: 39137939\ndata:0: 3c008912\n"
    )
    scales = read_cache(tmp_path / "c")
    assert scales == {
        "x": pytest.approx(2.008364),
        "(Unnamed Layer* 8) [Constant]_output": pytest.approx(1.406417e-4),
        "data:0": pytest.approx(0.00784518),
    }


@given(largest=st.floats(1e-30, 1e30))
def test_what_is_written_is_read_again(largest, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "c"
    path.write_text(write_cache(ranges_of(a=(-largest, 0.0), b=(0.0, largest / 2)), "10.3.0"))
    assert read_cache(path) == {"a": np.float32(largest / 127), "b": np.float32(largest / 2 / 127)}


def test_a_tensor_that_can_have_no_scale_has_no_line():
    text = write_cache(ranges_of(zero=(0.0, 0.0), tiny=(0.0, 1e-50), huge=(0.0, 1e60), **{"a\nb": (0.0, 1.0)}), "8.6.1")
    assert text == "TRT-8601-EntropyCalibration2\n"


def test_the_tensors_are_those_that_the_model_file_names():
    model = DEMO / "mobilevit_xxs_digits.onnx"
    graph = onnx.load(model).graph
    names = {graph.input[0].name, *(output for node in graph.node for output in node.output)}
    lines = write_cache(calibrate(model, DEMO / "digits_train.npz"), "8.6.1").splitlines()[1:]
    written = {line.rsplit(": ", 1)[0] for line in lines}
    assert written <= names
    layers = {node.output[0] for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "Add", "Softmax")}
    assert layers <= written


@pytest.mark.parametrize(
    ("version", "header"),
    [("8.6.1", 8601), ("8.5.10", 8510), ("8.6.1.post1", 8601), ("10.3.0", 100300), ("10.16.1.11", 101601)],
)
def test_the_header_has_the_version_as_tensorrt_counts_it(version, header):
    assert cache_header(version) == f"TRT-{header}-EntropyCalibration2"


@pytest.mark.parametrize("version", ["11.0.0", "11.4.0.106", "1.7.1.116", "7.1.3"])
def test_versions_without_calibrators_are_refused_and_the_way_out_is_named(version):
    with pytest.raises(OnnxquantError, match=rf"TensorRT {version}: has no .*: onnxquant rewrite --target tensorrt"):
        write_cache(ranges_of(a=(0.0, 1.0)), version)


@pytest.mark.parametrize("version", ["", "10", "10.3", "latest"])
def test_a_version_has_three_numbers(version):
    with pytest.raises(OnnxquantError, match=r"not a version; give three numbers, for example 8\.6\.1 or 10\.3\.0"):
        cache_header(version)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first line is ''"),
        (b"\xff\xfe", "not a text"),
        (b"input: 3c010204\n", "first line is 'input: 3c010204'"),
        (b"TRT-8601-EntropyCalibration2\ninput 3c010204\n", "line 2 is no tensor with its scale"),
        (b"TRT-8601-EntropyCalibration2\na: 3c010204\ninput: 0.00787\n", "line 3 is no tensor with its scale"),
        (b"TRT-8601-EntropyCalibration2\ninput: 7f800000\n", "line 2 is no tensor with its scale"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_cache_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "c").write_bytes(content)
    with pytest.raises(OnnxquantError, match=message) as raised:
        read_cache(tmp_path / "c")
    assert str(raised.value).startswith(str(tmp_path / "c"))


def calibrator_in(folder, calls):
    """Do `calls` with a calibrator over 10 samples, in a process that imports packages from `folder` first."""
    script = f"""if True:
        import json
        from pathlib import Path
        import numpy as np
        from onnxquant.calibration.dataset import input_specs, open_dataset
        from onnxquant.deploy.calibrator import calibrator
        from onnxquant.errors import OnnxquantError
        from tests.graphs import attention, images

        specs = input_specs(attention())
        data = open_dataset(images(10), specs, None)
        try:
            {calls}
        except OnnxquantError as error:
            print(json.dumps(str(error)))
    """
    return json.loads(run_script(PRELUDE + script, path=folder).stdout.splitlines()[-1])


def stand_in(folder, version, *calibrators):
    """A package `tensorrt` with the classes that polygraphy's Calibrator derives from or compares with.

    Full TensorRT has no libraries on PyPI, so its own classes can't be had in CI.
    """
    (folder / "tensorrt").mkdir()
    classes = "".join(f"class {name}: pass\n" for name in ("ILogger", *calibrators))
    (folder / "tensorrt" / "__init__.py").write_text(f'__version__ = "{version}"\n{classes}')


CALIBRATORS = ("IInt8Calibrator", "IInt8LegacyCalibrator", "IInt8EntropyCalibrator2")


def test_the_calibrator_is_an_entropy_calibrator_that_gives_whole_batches_again_and_again(tmp_path):
    pytest.importorskip("polygraphy")
    stand_in(tmp_path, "10.3.0", *CALIBRATORS)
    calls = """import tensorrt
            made = calibrator(data, specs, batch_size=4)
            again = [[feed["image"].shape for feed in made.data_loader] for _ in range(2)]
            first = next(iter(made.data_loader))["image"]
            print(json.dumps([isinstance(made, tensorrt.IInt8EntropyCalibrator2), made.get_batch_size(), again,
                              bool((first == images(10)[:4]).all()), made.read_calibration_cache()]))"""
    shapes = [[4, 3, 8, 8]] * 3
    assert calibrator_in(tmp_path, calls) == [True, 1, [shapes, shapes], True, None]


def test_the_calibrator_hands_our_cache_to_tensorrt(tmp_path):
    pytest.importorskip("polygraphy")
    stand_in(tmp_path, "8.6.1", *CALIBRATORS)
    text = write_cache(calibrate(attention(), images(8)), "8.6.1")
    (tmp_path / "t.cache").write_text(text)
    calls = 'print(json.dumps(calibrator(data, specs, cache=Path("t.cache")).read_calibration_cache().decode()))'
    assert calibrator_in(tmp_path, calls) == text


def test_tensorrt_11_has_no_calibrator(tmp_path):
    stand_in(tmp_path, "11.0.0")
    said = calibrator_in(tmp_path, "calibrator(data, specs)")
    assert said.startswith("TensorRT 11.0.0: has no calibrators, they ended with TensorRT 10; quantize the model with")
    assert said.endswith("onnxquant rewrite --target tensorrt")


def test_tensorrt_rtx_has_no_calibrator(tmp_path):
    """The real one."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    (tmp_path / "tensorrt.py").write_text('raise ModuleNotFoundError("hidden", name="tensorrt")')
    said = calibrator_in(tmp_path, "calibrator(data, specs)")
    assert said.startswith("TensorRT-RTX ")
    assert "has no calibrators, they ended with TensorRT 10; quantize the model with Q/DQ nodes instead" in said
