"""`onnxquant evaluate` on the command line."""

import json

import numpy as np
import onnx
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from onnxquant.cli.evaluate import evaluate_command
from onnxquant.errors import OnnxquantError
from onnxquant.preprocessing import CLASSES_KEY, METADATA_KEY, Preprocessing
from tests.graphs import parse

APP = typer.Typer()
APP.command()(evaluate_command)

UNIT = Preprocessing(input_size=(4, 4), crop_pct=1.0, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def model(tmp_path):
    """Says 0, 1 or 2 for an image that is red, green or blue, under a name that rich would take for markup."""
    proto = parse(
        "colours (float[N, 3, 4, 4] image) => (float[N, 3] y) { p = GlobalAveragePool (image) y = Flatten (p) }"
    )
    onnx.helper.set_model_props(
        proto, {METADATA_KEY: UNIT.to_json(), CLASSES_KEY: json.dumps(["red", "green", "blue"])}
    )
    path = tmp_path / "[bold]m.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images of every colour, one of the blue ones green."""
    for name, colour in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(3):
            shown = (0, 255, 0) if (name, index) == ("blue", 1) else colour
            Image.new("RGB", (9, 7), shown).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def invoke(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def test_accuracy_interval_and_samples_are_printed_and_names_as_they_are(model, folder):
    result = invoke(model, "--data", folder)
    assert result.exit_code == 0
    assert "88.89% (95 % interval 56.50% to 98.01%)" in result.stdout
    assert "100.00%" in result.stdout
    assert "9 samples" in result.stdout
    assert "[bold]m.onnx" in result.stdout
    assert result.stderr == ""


def test_json_is_all_there_is_on_stdout(model, folder):
    result = invoke(model, "--data", folder, "--json", "--batch-size", 2)
    document = json.loads(result.stdout)
    assert document["top1"] == pytest.approx(8 / 9)
    assert document["top5"] == 1
    assert document["top1_interval"] == pytest.approx([0.5650, 0.9801], abs=1e-4)
    assert document["samples"] == 9
    assert (document["model"], document["data"]) == (str(model), str(folder))


def test_per_class_and_limit_choose_samples(model, folder):
    assert json.loads(invoke(model, "--data", folder, "--json", "--per-class", "1:2").stdout)["top1"] == pytest.approx(
        2 / 3
    )
    assert json.loads(invoke(model, "--data", folder, "--json", "--limit", 3).stdout)["samples"] == 3


def test_preprocess_goes_before_what_the_model_says(model, folder):
    inverted = {**UNIT.model_dump(), "std": [1, 1, 1], "mean": [2, 0, 0]}
    result = invoke(model, "--data", folder, "--json", "--preprocess", json.dumps(inverted))
    assert json.loads(result.stdout)["top1"] == pytest.approx(5 / 9)


def test_an_npz_with_labels_needs_no_preprocessing(model, tmp_path):
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, model)
    np.savez(
        tmp_path / "d.npz", image=np.eye(3, dtype=np.float32)[:, :, None, None] * np.ones((4, 4)), labels=np.arange(3)
    )
    assert json.loads(invoke(model, "--data", tmp_path / "d.npz", "--json").stdout)["top1"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "no_such"], "--data no_such: no such file or folder"),
        (["--per-class", "x"], "--per-class x: must be START:STOP"),
        (["--preprocess", "imagnet"], "--preprocess"),
    ],
)
def test_bad_options_end_in_an_error_that_names_them(model, folder, arguments, said):
    result = invoke(model, "--data", folder, *arguments)
    assert isinstance(result.exception, OnnxquantError)
    assert str(result.exception).startswith(said)


def test_malformed_metadata_names_the_model(model, folder):
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, {METADATA_KEY: "{"})
    onnx.save(proto, model)
    assert str(invoke(model, "--data", folder).exception).startswith(f"{model}: metadata {METADATA_KEY}")


@pytest.mark.parametrize("option", ["--batch-size", "--limit"])
def test_counts_below_one_are_refused(model, folder, option):
    result = invoke(model, "--data", folder, option, 0)
    assert result.exit_code == 2
    assert option in result.stderr
