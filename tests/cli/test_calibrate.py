"""`onnxquant calibrate` on the command line."""

import importlib.util
import json
import os

import numpy as np
import onnx
import pytest

from onnxquant.calibration.ranges import Ranges
from onnxquant.cli.calibrate import calibrate_command
from onnxquant.deploy.calibrator import read_cache, write_cache
from onnxquant.observation import calibrate
from tests.cli.invoking import Verb
from tests.graphs import attention, images

invoke = Verb(calibrate_command)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(attention(), "a.onnx")
    np.savez("calib.npz", image=images(8))
    return tmp_path


def test_the_ranges_are_written_beside_the_model_and_the_widest_are_shown(folder):
    result = invoke("a.onnx", "--calib", "calib.npz")
    assert result.exit_code == 0, result.output
    ranges = Ranges.from_json(folder / "a.ranges.json")
    assert ranges == calibrate("a.onnx", "calib.npz")
    lines = result.stdout.splitlines()
    assert "calib.npz, 6 samples; 2 more held back for rewrite to measure on" in lines[0]
    assert "20 observed, for recipe efficientquant" in lines[1]
    assert lines[2].startswith("widest")
    widths = [float(row[-2]) - float(row[-4]) for row in map(str.split, lines[2:7])]
    assert widths == sorted(widths, reverse=True)
    assert lines[7].split() == ["written", "a.ranges.json"]


def test_json_is_all_there_is_on_stdout(folder):
    document = json.loads(invoke("a.onnx", "--calib", "calib.npz", "-o", "r.json", "--samples", 2, "--json").stdout)
    assert document.pop("seconds") > 0
    widest = document.pop("widest")
    assert document == {
        "output": "r.json", "tensorrt_cache": None, "recipe": "efficientquant", "tensors": 20, "samples": 2,
    }  # fmt: skip
    assert len(widest) == 5
    assert widest[0].keys() == {"tensor", "minimum", "maximum"}


def test_options_are_those_of_a_rewrite(folder):
    invoke(
        *("a.onnx", "--calib", "calib.npz", "-o", "r.json", "--recipe", "weights-only", "--target", "tensorrt"),
        *("--set", "quantize_conv_weights.rounding=nearest", "--samples", 3, "--batch-size", 2),
    )
    ranges = Ranges.from_json(folder / "r.json")
    assert (ranges.recipe, ranges.samples, ranges.model) == ("weights-only", 3, "a.onnx")
    assert {name for seen in ranges.tensors.values() for name in seen} == {"MinMax"}


def test_the_same_ranges_go_into_a_cache_for_tensorrt(folder):
    arguments = ("--tensorrt-cache", "t.cache", "--tensorrt-version", "10.3.0")
    result = invoke("a.onnx", "--calib", "calib.npz", "-o", "r.json", *arguments)
    assert result.exit_code == 0, result.output
    assert (folder / "t.cache").read_text() == write_cache(Ranges.from_json(folder / "r.json"), "10.3.0")
    assert read_cache(folder / "t.cache").keys() == Ranges.from_json(folder / "r.json").tensors.keys()
    assert "t.cache" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no.onnx", "--calib", "calib.npz"), "no.onnx: no such file"),
        (("a.onnx", "--calib", "nowhere"), "--calib nowhere: no such file"),
        (("a.onnx", "--calib", "calib.npz", "--recipe", "best"), "--recipe best: unknown"),
        (("a.onnx", "--calib", "calib.npz", "--target", "toaster"), "--target toaster: unknown"),
        (("a.onnx", "--calib", "calib.npz", "-o", "calib.npz"), "-o calib.npz: is the input itself"),
        (("a.onnx", "--calib", "calib.npz", "-o", "a.onnx"), "-o a.onnx: is the input itself"),
        (("a.onnx", "--calib", "calib.npz", "-o", "no/r.json"), "-o no/r.json: can't be written"),
        (("a.onnx", "--calib", "calib.npz", "-o", "x", "--tensorrt-cache", "x"), "--tensorrt-cache x: is what -o"),
        (("a.onnx", "--calib", "calib.npz", "--tensorrt-version", "8.6.1"), "--tensorrt-version: is for a cache"),
        (
            ("a.onnx", "--calib", "calib.npz", "--tensorrt-cache", "t", "--tensorrt-version", "11.0.0"),
            "TensorRT 11.0.0: has no calibrators, only 8 to 10 have them; quantize the model with Q/DQ nodes instead",
        ),
        (
            ("a.onnx", "--calib", "calib.npz", "--tensorrt-cache", "t", "--tensorrt-version", "10"),
            "TensorRT 10: not a version",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(folder, arguments, said):
    assert said in invoke.error(*arguments)
    assert sorted(os.listdir(folder)) == ["a.onnx", "calib.npz"]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_a_cache_needs_to_be_told_its_version(folder):
    said = invoke.error("a.onnx", "--calib", "calib.npz", "--tensorrt-cache", "t.cache")
    assert "name the one that is to read the cache with --tensorrt-version" in said


def test_calibration_data_is_required(folder):
    assert invoke("a.onnx").exit_code == 2
