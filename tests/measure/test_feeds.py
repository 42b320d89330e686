"""What models are timed on: random values that are the same every time, or the data that is given."""

import numpy as np
import pytest
from onnx import helper

from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.errors import OnnxquantError
from onnxquant.measure.feeds import data_feed, random_feed
from onnxquant.shapes import image_shape
from tests.graphs import attention, parse

RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"


def feed(proto, name="a.onnx", batch=1, shapes=None, seed=0):
    return random_feed(input_specs(proto), name, batch, shapes, image_shape(proto, name), seed)


def test_random_inputs_are_the_same_every_time_and_for_every_model():
    first, second = feed(attention(), "a", 2), feed(attention(channels=4), "b", 2)
    assert first["image"].shape == (2, 3, 8, 8)
    assert first["image"].dtype == np.float32
    assert (first["image"] == second["image"]).all()
    assert (feed(attention(), "a", 2, seed=1)["image"] != first["image"]).any()


def test_random_inputs_have_the_type_of_the_input_and_values_that_any_model_takes():
    text = """g (float16[2] half, double[2] wide, uint8[50, 50] bytes, int64[50] tokens, bool[50] mask, float scalar)
        => (float16[2] y) { y = Relu (half) }"""
    made = feed(parse(text))
    assert {name: array.dtype.name for name, array in made.items()} == {
        "half": "float16",
        "wide": "float64",
        "bytes": "uint8",
        "tokens": "int64",
        "mask": "bool",
        "scalar": "float32",
    }
    assert set(made["tokens"]) == {0, 1}
    assert made["bytes"].max() > 200
    assert made["scalar"].shape == ()


def test_text_can_not_be_made_up():
    with pytest.raises(OnnxquantError, match=r"a\.onnx: input x .* give some with --data"):
        feed(parse("g (string[2] x) => (string[2] y) { y = Identity (x) }"), "a.onnx")


DYNAMIC = "g (float[N, C, H, W] x) => (float[N, C, H, W] y) { y = Relu (x) }"


def test_dynamic_axes_come_from_the_options_or_from_the_models_own_preprocessing():
    proto = parse(DYNAMIC)
    with pytest.raises(OnnxquantError, match=r"a\.onnx: input x float32 \(N, C, H, W\) .* --shape x=1x3x224x224"):
        feed(proto, "a.onnx", 2)
    assert feed(proto, "a.onnx", 2, {"x": [1, 3, 5, 7]})["x"].shape == (1, 3, 5, 7)
    metadata = '{"input_size": [6, 8], "crop_pct": 1, "interpolation": "box", "mean": [0, 0, 0], "std": [1, 1, 1]}'
    helper.set_model_props(proto, {"onnxquant.preprocessing": metadata})
    assert feed(proto, "a.onnx", 2)["x"].shape == (2, 3, 6, 8)
    assert feed(proto, "a.onnx", 2, {"x": [1, 3, 5, 7]})["x"].shape == (1, 3, 5, 7)


@pytest.mark.parametrize("given", [[2, 4, 1], [2, 5]])
def test_a_shape_that_does_not_fit_the_input_is_refused(given):
    with pytest.raises(OnnxquantError, match=r"--shape x=2x.*: doesn't fit input x float32 \(N, 4\) of a\.onnx"):
        feed(parse(RELU), "a.onnx", 1, {"x": given})


@pytest.mark.parametrize(("axis", "batch", "expected"), [("N", 3, 3), ("N", 1, 1), ("2", 5, 2), ("8", 1, 8)])
def test_data_is_cut_to_the_batch_that_is_asked_for_or_that_the_model_fixes(axis, batch, expected):
    proto = parse(RELU.replace("N", axis))
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    made = data_feed(open_dataset(x, input_specs(proto), None), input_specs(proto), batch)["x"]
    assert made.shape == (expected, 4)
    assert (made[: min(expected, 4)] == x[:expected]).all()


def test_too_few_samples_for_a_batch_are_an_error():
    proto = parse(RELU)
    with pytest.raises(OnnxquantError, match="has 3 samples, too few for --batch 4"):
        data_feed(open_dataset(np.ones((3, 4), np.float32), input_specs(proto), None), input_specs(proto), 4)
