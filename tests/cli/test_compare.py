"""`onnxquant compare` on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from onnxquant.cli.compare import compare_command
from onnxquant.cli.options import shown
from onnxquant.errors import OnnxquantError
from tests.graphs import attention, images, parse, run

APP = typer.Typer()
APP.command()(compare_command)


@pytest.fixture
def paths(tmp_path):
    """Two models that differ by a factor in their second node, whose name rich would take for markup; and data."""
    for name, factor in (("a", 1.0), ("b", 1.1)):
        proto = parse(
            "g (float[N, 2] x) => (float[N, 2] y) { first = Relu (x) second = Mul (first, k) y = Neg (second) }",
            k=np.float32(factor),
        )
        proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = "[red]second"
        onnx.save(proto, tmp_path / f"{name}.onnx")
    np.save(tmp_path / "d.npy", np.array([[1, 2], [3, 4], [5, -6]], np.float32))
    return [tmp_path / "a.onnx", tmp_path / "b.onnx", "--data", tmp_path / "d.npy"]


def invoke(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def test_output_metrics_and_layers_worst_first_are_printed_with_names_as_they_are(paths):
    result = invoke(*paths)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "3 samples"
    assert lines[2].split() == ["y", "20.00", "1.000000", "100.00%"]
    assert "worst 3 of 3 layers" in result.stdout
    assert [line.split() for line in lines[-3:]] == [
        ["[red]second", "Mul", "20.00"],
        ["y", "Neg", "20.00"],
        ["first", "Relu", "inf"],
    ]
    assert result.stderr == ""


def test_json_is_all_there_is_on_stdout_and_has_no_infinity(paths):
    def no_constant(text):
        raise AssertionError(f"{text} is no JSON")

    document = json.loads(invoke(*paths, "--json").stdout, parse_constant=no_constant)
    assert document["samples"] == 3
    assert document["outputs"]["y"]["sqnr_db"] == pytest.approx(20, abs=1e-4)
    assert document["layers"][0]["tensor"] == "[red]second"
    assert document["layers"][-1] == {"tensor": "first", "op": "Relu", "sqnr_db": "inf"}


def test_top_says_how_many_layers_and_zero_none(paths):
    assert len(json.loads(invoke(*paths, "--json", "--top", 1).stdout)["layers"]) == 1
    assert "worst 1 of 3 layers" in invoke(*paths, "--top", 1).stdout
    assert "layers" not in invoke(*paths, "--top", 0).stdout


def test_limit_chooses_samples(paths):
    assert json.loads(invoke(*paths, "--json", "--limit", 2).stdout)["samples"] == 2


def test_a_missing_model_is_named(paths):
    result = invoke(paths[0], "no.onnx", *paths[2:])
    assert isinstance(result.exception, OnnxquantError)
    assert str(result.exception).startswith("no.onnx: no such file")


def test_names_cannot_steer_the_terminal():
    assert shown("/stages.0/[a]/Conv") == "/stages.0/\\[a]/Conv"
    assert shown("\x1b[2Jcleared") == "'\\x1b[2Jcleared'"


# Runs that polygraphy saved


def save_results(path, runners):
    """As polygraphy --save-outputs does: for each runner's name a dict of outputs an iteration."""
    results = pytest.importorskip("polygraphy.comparator").RunResults()
    for name, iterations in runners.items():
        results.add(iterations, runner_name=name)
    results.save(str(path))
    return path


def save_inputs(path, feeds):
    pytest.importorskip("polygraphy.json").save_json(feeds, str(path))
    return path


@pytest.fixture
def saved(paths, tmp_path):
    """What model b gives on another machine, row by row of the data."""
    feeds = [{"x": row[None]} for row in np.load(paths[3])]
    save_inputs(tmp_path / "inputs.json", feeds)
    iterations = [{"y": run(onnx.load(paths[1]), **feed)[0]} for feed in feeds]
    return save_results(tmp_path / "outputs.json", {"trt-runner-N0": iterations})


def document(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error(*arguments):
    result = invoke(*arguments)
    assert isinstance(result.exception, OnnxquantError), result.output
    assert result.stdout == ""
    return str(result.exception)


@pytest.mark.parametrize("data", ["inputs.json", "d.npy"])
def test_saved_outputs_are_compared_as_the_model_that_gave_them_would_be(paths, saved, data):
    of_the_model = document(*paths, "--top", 0)
    assert document(paths[0], saved, "--data", saved.with_name(data)) == of_the_model


def test_tensors_that_were_saved_beside_the_outputs_are_the_layers(paths, tmp_path):
    model = onnx.load(paths[1])
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("[red]second"))
    names = ["y", "[red]second"]
    iterations = [dict(zip(names, run(model, x=row[None]), strict=True)) for row in np.load(paths[3])]
    outputs = save_results(tmp_path / "all.json", {"trt": iterations})
    (layer,) = document(paths[0], outputs, *paths[2:])["layers"]
    assert layer == {"tensor": "[red]second", "op": "Mul", "sqnr_db": pytest.approx(20, abs=1e-4)}
    assert document(paths[0], outputs, *paths[2:], "--top", 0)["layers"] == []


def test_a_run_in_batches_is_compared_feed_by_feed(tmp_path):
    onnx.save(attention(), tmp_path / "a.onnx")
    feeds = [{"image": images(4)}, {"image": images(3, seed=2)}]
    iterations = [{"probabilities": run(attention(), **feed)[0]} for feed in feeds]
    outputs = save_results(tmp_path / "o.json", {"trt": iterations})
    compared = document(tmp_path / "a.onnx", outputs, "--data", save_inputs(tmp_path / "i.json", feeds))
    assert compared["samples"] == 7
    assert compared["outputs"]["probabilities"]["top1_agreement"] == 1
    assert compared["outputs"]["probabilities"]["sqnr_db"] == "inf"


def test_one_of_several_runners_is_chosen_by_part_of_its_name(paths, tmp_path):
    def iterations(model):
        return [{"y": run(onnx.load(model), x=row[None])[0]} for row in np.load(paths[3])]

    runners = {"trt-runner-N0": iterations(paths[1]), "onnxrt-runner-N0": iterations(paths[0])}
    outputs = save_results(tmp_path / "two.json", runners)
    assert document(paths[0], f"{outputs}:onnx", *paths[2:])["outputs"]["y"]["sqnr_db"] == "inf"
    assert document(paths[0], f"{outputs}:trt-", *paths[2:])["outputs"]["y"]["sqnr_db"] == pytest.approx(20, abs=1e-4)
    for part in ("", ":runner", ":cuda"):
        said = error(paths[0], f"{outputs}{part}", *paths[2:])
        assert "two.json: holds the outputs of trt-runner-N0, onnxrt-runner-N0; choose one by part of its name" in said


@pytest.mark.parametrize(
    ("rewritten", "data", "said"),
    [
        ("no.json", "d.npy", "no.json: no such file"),
        ("inputs.json", "d.npy", "inputs.json: not outputs that polygraphy saved"),
        ("text.json", "d.npy", "text.json: not outputs that polygraphy saved"),
        ("outputs.json", "fewer.npy", "holds 3 iterations, but"),
        ("outputs.json", "more.npy", "ends before"),
        ("z.json", "d.npy", "holds no output y, which"),
        ("wide.json", "d.npy", "output y has another shape"),
    ],
)
def test_saved_outputs_that_do_not_belong_to_model_and_data_are_refused(paths, saved, rewritten, data, said):
    folder = saved.parent
    save_results(folder / "z.json", {"trt": [{"z": np.zeros((1, 2), np.float32)}] * 3})
    save_results(folder / "wide.json", {"trt": [{"y": np.zeros((1, 3), np.float32)}] * 3})
    (folder / "text.json").write_text("text")
    np.save(folder / "fewer.npy", np.ones((2, 2), np.float32))
    np.save(folder / "more.npy", np.ones((4, 2), np.float32))
    assert said in error(paths[0], folder / rewritten, "--data", folder / data)


def test_what_is_written_for_polygraphy_is_taken_by_its_run_command(paths, tmp_path):
    pytest.importorskip("polygraphy")
    assert "3 samples" in invoke(*paths, "--polygraphy-json", tmp_path / "run").stdout
    command = [
        *[Path(sys.executable).with_name("polygraphy"), "run", paths[0], "--onnxrt"],
        *["--load-inputs", tmp_path / "run" / "inputs.json", "--load-outputs", tmp_path / "run" / "outputs.json"],
        *["--compare", "snr", "--snr-threshold", "19"],
    ]
    printed = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
    assert f"vs. {paths[0]} | Passed: 3/3 iterations" in printed
    assert f"{paths[0]} vs. {paths[1]} | Passed: 3/3 iterations" in printed


def test_a_fixed_batch_is_written_and_read_with_its_padding(paths, tmp_path):
    comparator = pytest.importorskip("polygraphy.comparator")
    model = tmp_path / "fixed.onnx"
    onnx.save(parse("g (float[2, 2] x) => (float[2, 2] y) { y = Neg (x) }"), model)
    assert invoke(model, model, *paths[2:], "--polygraphy-json", tmp_path).exit_code == 0
    ((_, iterations), _) = comparator.RunResults.load(str(tmp_path / "outputs.json"))
    assert [iteration["y"].tolist() for iteration in iterations] == [[[-1, -2], [-3, -4]], [[-5, 6], [-5, 6]]]
    outputs = save_results(tmp_path / "back.json", {"trt": iterations})
    for data in ("inputs.json", "d.npy"):
        assert document(model, outputs, "--data", tmp_path / data)["outputs"]["y"]["sqnr_db"] == "inf"


def test_inputs_are_never_overwritten(paths, tmp_path):
    data = ["--data", save_inputs(tmp_path / "inputs.json", [{"x": np.ones((1, 2), np.float32)}])]
    assert "is the input itself (--data)" in error(*paths[:2], *data, "--polygraphy-json", tmp_path)
    assert "can't be made" in error(*paths, "--polygraphy-json", paths[0])
