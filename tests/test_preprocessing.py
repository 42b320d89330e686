"""Pictures become arrays as the model's metadata says, and bad metadata is one clear line."""

import json

import numpy as np
import pytest
from PIL import Image

from onnxquant.calibration.samples import InputSpec
from onnxquant.errors import OnnxquantError
from onnxquant.preprocessing import (
    CLASSES_KEY,
    METADATA_KEY,
    Preprocessing,
    classes_from_metadata,
    parse_preprocessing,
)

FIELDS = {
    "input_size": [32, 24],
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}
UNIT = Preprocessing(input_size=(4, 4), crop_pct=1.0, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))
FIXED = [InputSpec("x", ("N", 3, 64, 48), np.dtype(np.float32))]
DYNAMIC = [InputSpec("x", ("N", 3, "H", None), np.dtype(np.float32))]


def one_line(raised):
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_json_and_back_is_the_same_preprocessing_with_sorted_keys():
    preprocessing = Preprocessing(**FIELDS)
    text = preprocessing.to_json()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert Preprocessing.from_metadata({METADATA_KEY: text}, "a.onnx") == preprocessing


def test_a_model_without_the_metadata_has_no_preprocessing():
    assert Preprocessing.from_metadata({"other": "{}"}, "a.onnx") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[1, 2]",
        "__import__('os')",
        "[" * 100_000,
        json.dumps({**FIELDS, "extra": 1}),
        json.dumps({**FIELDS, "mean": [0.5, 0.5]}),
        json.dumps({**FIELDS, "std": [0, 1, 1]}),
        json.dumps({**FIELDS, "mean": [float("nan"), 0, 0]}),
        json.dumps({**FIELDS, "input_size": [0, 224]}),
        json.dumps({**FIELDS, "input_size": [10**9, 10**9]}),
        json.dumps({**FIELDS, "crop_pct": 1e-9}),
        json.dumps({**FIELDS, "crop_mode": "squash"}),
        json.dumps({**FIELDS, "interpolation": "magic"}),
        json.dumps({key: value for key, value in FIELDS.items() if key != "std"}),
    ],
)
def test_malformed_metadata_is_an_error_that_names_the_file_and_the_key(text):
    with pytest.raises(OnnxquantError) as raised:
        Preprocessing.from_metadata({METADATA_KEY: text}, "a.onnx")
    assert one_line(raised).startswith(f"a.onnx: metadata {METADATA_KEY}: ")


def test_an_error_names_the_field_that_is_wrong():
    with pytest.raises(OnnxquantError, match="crop_pct"):
        Preprocessing.from_metadata({METADATA_KEY: json.dumps({**FIELDS, "crop_pct": 7})}, "a.onnx")


def test_the_array_is_float32_channels_first_and_normalised():
    image = Image.new("RGB", (100, 60), (255, 0, 51))
    array = Preprocessing(**FIELDS)(image)
    assert array.dtype == np.float32
    assert array.shape == (3, 32, 24)
    assert array.flags.c_contiguous
    np.testing.assert_allclose(array[:, 5, 5], [(1 - 0.5) / 0.2, (0 - 0.4) / 0.3, (0.2 - 0.3) / 0.4], rtol=1e-5)


def test_the_centre_is_what_is_kept():
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255
    assert (UNIT(Image.fromarray(pixels)) == 1).all()
    assert not (UNIT(Image.fromarray(pixels).crop((0, 0, 8, 4))) == 1).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_any_8_bit_mode_is_converted_to_rgb(mode):
    image = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    assert UNIT(image).shape == (3, 4, 4)
    np.testing.assert_allclose(UNIT(image), 1, atol=0.02)


def test_a_16_bit_image_keeps_its_high_byte_rather_than_turn_white():
    pixels = np.full((4, 4), 0x80FF, np.uint16)
    np.testing.assert_allclose(UNIT(Image.fromarray(pixels)), 0x80 / 255, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_defined_range_are_refused(dtype):
    with pytest.raises(ValueError, match="no defined range"):
        UNIT(Image.fromarray(np.zeros((4, 4), dtype)))


def test_an_image_so_thin_that_resizing_would_fill_memory_is_refused():
    big = UNIT.model_copy(update={"input_size": (256, 256)})
    with pytest.raises(ValueError, match="too thin"):
        big(Image.new("L", (1, 60_000)))
    assert big(Image.new("L", (1, 600))).shape == (3, 256, 256)


@pytest.mark.parametrize(("name", "crop_pct", "mean"), [("imagenet", 0.875, 0.485), ("unit", 1.0, 0.0)])
def test_a_shorthand_takes_its_size_from_the_model(name, crop_pct, mean):
    preprocessing = parse_preprocessing(name, FIXED)
    assert preprocessing.input_size == (64, 48)
    assert (preprocessing.crop_pct, preprocessing.mean[0]) == (crop_pct, mean)


def test_json_on_the_command_line_may_leave_the_size_to_the_model_or_give_it():
    without = {key: value for key, value in FIELDS.items() if key != "input_size"}
    assert parse_preprocessing(json.dumps(without), FIXED).input_size == (64, 48)
    assert parse_preprocessing(json.dumps(FIELDS), DYNAMIC).input_size == (32, 24)


@pytest.mark.parametrize("text", ["imagenet", json.dumps({"crop_pct": 1.0})])
def test_a_model_with_dynamic_height_and_width_needs_the_size(text):
    with pytest.raises(OnnxquantError, match=r"--preprocess .* no fixed height and width .*input_size"):
        parse_preprocessing(text, DYNAMIC)


@pytest.mark.parametrize("text", ["imagnet", "{", "3", '{"crop_pct": 1}', "[]"])
def test_any_other_preprocess_text_is_an_error_that_says_what_is_expected(text):
    with pytest.raises(OnnxquantError, match=r"--preprocess.*expected for example") as raised:
        parse_preprocessing(text, FIXED)
    one_line(raised)


def test_class_names_are_read_in_order_or_are_unknown():
    assert classes_from_metadata({CLASSES_KEY: '["dog", "cat"]'}, "a.onnx") == ["dog", "cat"]
    assert classes_from_metadata({}, "a.onnx") is None


@pytest.mark.parametrize("text", ["dog, cat", "{}", "[1, 2]"])
def test_malformed_class_names_are_an_error_that_names_the_file_and_the_key(text):
    with pytest.raises(OnnxquantError, match=f"a.onnx: metadata {CLASSES_KEY}"):
        classes_from_metadata({CLASSES_KEY: text}, "a.onnx")
