"""`polygraphy run` with the extension, and with the scripts for its own options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("polygraphy")

from polygraphy.comparator import IterationResult
from polygraphy.exception import PolygraphyException
from polygraphy.json import load_json

from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.polygraphy.compare_outputs import compare_outputs
from onnxquant.preprocessing import METADATA_KEY, Preprocessing
from tests.graphs import attention, images
from tests.polygraphy.commands import polygraphy

RUN = ["run", "model.onnx", "--onnxrt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and data for it."""
    onnx.save(attention(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", image=images(32))
    return tmp_path


def script(name: str) -> str:
    """Where users are told to find it."""
    return subprocess.run(
        [sys.executable, "-m", "onnxquant.polygraphy", name], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_original_and_the_rewritten_model_are_run_and_compared(folder):
    printed = polygraphy(
        *RUN, "--onnxquant", "efficientquant", "--calib", "calib.npz", "--onnxquant-target", "tensorrt", cwd=folder
    )
    assert "onnxquant efficientquant: 2 x weight, uniform 8 bit, 1 x activation, log2 8 bit" in printed
    assert "dB on 8 held-back samples" in printed
    assert "probabilities: SQNR" in printed
    assert "vs. onnxquant efficientquant | Passed: 1/1 iterations" in printed


def test_a_generated_script_runs_in_any_folder_and_fails_where_the_comparison_does(folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    polygraphy(
        *RUN, "--onnxquant", "weights-only", "--calib", "calib.npz", "--gen-script", elsewhere / "a.py", cwd=folder
    )
    command = [sys.executable, "a.py"]
    passed = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True)
    assert "Passed: 1/1 iterations" in passed.stdout
    failed = subprocess.run(
        command, cwd=elsewhere, env={"ONNXQUANT_MIN_SQNR": "200"}, capture_output=True, text=True, check=False
    )
    assert failed.returncode != 0
    assert "at least 200 wanted" in failed.stdout + failed.stderr


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (["--compare", "simple"], "Tolerance: [abs=1e-05, rel=1e-05]"),
        (["--atol", "1e-9"], "Tolerance: [abs=1e-09"),
    ],
)
def test_a_comparison_that_the_user_chose_is_kept(folder, chosen, said):
    printed = polygraphy(*RUN, "--onnxquant", "weights-only", *chosen, cwd=folder, ok=False)
    assert said in printed
    assert "SQNR" not in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--onnxquant", "efficientquant", "--calib", "no.npz"], "no.npz: no such file or folder"),
        (["--calib", "calib.npz"], "--calib: is for --onnxquant; choose a recipe with --onnxquant RECIPE"),
        (["--onnxquant", "a", "--onnxquant", "b"], "--onnxquant: given twice; compare one recipe at a time"),
    ],
)
def test_bad_options_are_one_line(folder, options, said):
    lines = polygraphy(*RUN, *options, cwd=folder, ok=False).splitlines()
    (line,) = [line for line in lines if line.startswith("[!]")]
    assert said in line


def test_the_data_loader_script_gives_images_as_the_model_wants_them(folder):
    preprocessing = Preprocessing(
        input_size=(8, 8), crop_pct=0.875, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    model = attention()
    onnx.helper.set_model_props(model, {METADATA_KEY: preprocessing.model_dump_json()})
    onnx.save(model, folder / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)
    np.save(folder / "images.npy", pixels)
    printed = polygraphy(
        *RUN,
        *["--data-loader-script", script("data_loader"), "--save-inputs", "in.json"],
        *["--onnxquant", "weights-only", "--compare-func-script", script("compare_outputs")],
        cwd=folder,
        ONNXQUANT_MODEL="model.onnx",
        ONNXQUANT_DATA="images.npy",
        ONNXQUANT_LIMIT=2,
    )
    assert "Passed: 2/2 iterations" in printed
    expected = open_dataset(pixels, input_specs(model), preprocessing, limit=2)
    saved = load_json(str(folder / "in.json"))
    for feeds, sample in zip(saved, expected, strict=True):
        np.testing.assert_array_equal(feeds["image"], sample.feeds["image"])


def test_the_data_loader_script_says_which_variable_is_not_set(folder):
    printed = polygraphy(*RUN, "--data-loader-script", script("data_loader"), cwd=folder, ok=False)
    assert "[!] ONNXQUANT_MODEL: not set; data_loader.py needs ONNXQUANT_MODEL and ONNXQUANT_DATA" in printed


def outputs(name: str = "y", scale: float = 1.0, shape: tuple[int, ...] = (4,)) -> IterationResult:
    values = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    return IterationResult({name: scale * values})


@pytest.mark.parametrize(("wanted", "matches"), [(None, True), ("19.0", True), ("19.5", False)])
def test_outputs_match_from_the_wanted_ratio_upwards_whichever_comes_first(monkeypatch, wanted, matches):
    if wanted:
        monkeypatch.setenv("ONNXQUANT_MIN_SQNR", wanted)
    first, second = outputs(), outputs(scale=0.9)  # 20.0 dB, 19.1 dB the other way round
    assert compare_outputs(first, second) == {"y": matches}
    assert compare_outputs(second, first) == {"y": matches}


def test_outputs_that_one_lacks_and_outputs_of_another_shape_do_not_match():
    assert compare_outputs(outputs("y"), outputs("z")) == {"y": False, "z": False}
    assert compare_outputs(outputs(), outputs(shape=(2, 2))) == {"y": False}


@pytest.mark.parametrize("text", ["high", "nan"])
def test_a_threshold_that_is_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("ONNXQUANT_MIN_SQNR", text)
    with pytest.raises(PolygraphyException, match=f"ONNXQUANT_MIN_SQNR={text}: must be a number of dB"):
        compare_outputs(outputs(), outputs())
