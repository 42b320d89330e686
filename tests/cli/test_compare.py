"""`onnxquant compare` on the command line."""

import json

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from onnxquant.cli.compare import compare_command
from onnxquant.cli.options import shown
from onnxquant.errors import OnnxquantError
from tests.graphs import parse

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
