"""`onnxquant sensitivity` on the command line."""

import json

import numpy as np
import onnx
import pytest

from onnxquant.cli.sensitivity import sensitivity_command
from tests.cli.invoking import Verb
from tests.graphs import attention, images, parse

invoke = Verb(sensitivity_command)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    proto = attention()
    for tensor in proto.graph.initializer:
        if tensor.name == "stem_weight":
            tensor.name = proto.graph.node[0].input[1] = "[red]stem"
    for node in proto.graph.node:
        node.name = f"/net/net.{node.output[0]}/{node.op_type}"
    onnx.save(proto, "a.onnx")
    np.savez("calib.npz", image=images(8))
    return tmp_path


def test_tensors_are_listed_worst_first_with_names_as_they_are_and_all_together_last(folder):
    result = invoke("a.onnx", "--calib", "calib.npz")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "3 tensors, each quantized alone, worst first; 2 held-back samples"
    assert lines[1].split()[:2] == ["tensor", "block"]
    rows = [line.split() for line in lines[2:5]]
    assert {row[0] for row in rows} == {"[red]stem", "head_weight", "probs"}
    assert {"conv", "attention"} == {row[2] for row in rows}
    ranks = [float(row[-3]) for row in rows]
    assert ranks == sorted(ranks)
    assert lines[6].startswith("all 3 tensors together: SQNR ")
    assert result.stderr == ""


def test_blocks_are_listed_by_their_module(folder):
    lines = invoke("a.onnx", "--calib", "calib.npz", "--by", "block").stdout.splitlines()
    assert "blocks, each quantized alone" in lines[0]
    assert lines[1].split()[:2] == ["block", "kind"]
    assert all(line.startswith("net") for line in lines[2:5])


def test_json_is_all_there_is_on_stdout(folder):
    document = json.loads(invoke("a.onnx", "--calib", "calib.npz", "--json").stdout)
    assert (document["model"], document["samples"], document["held_back"]) == ("a.onnx", 2, True)
    assert document["together"]["tensors"] == 3
    assert document["together"]["sqnr_db"] > 20
    assert document["costs"][0].keys() == {
        "tensors",
        "scope",
        "kind",
        "quantizer",
        "sqnr_db",
        "top1_agreement",
        "share",
    }


def test_recipe_overrides_target_and_samples_are_those_of_a_rewrite(folder):
    costs = json.loads(
        invoke(
            *("a.onnx", "--calib", "calib.npz", "--json", "--recipe", "weights-only", "--target", "tensorrt"),
            *("--set", "quantize_conv_weights.bits=5", "--samples", 1),
        ).stdout
    )
    assert costs["samples"] == 1
    assert {cost["quantizer"] for cost in costs["costs"]} == {"weight, uniform 5 bit (emulated: stored in 8)"}


def test_samples_that_calibration_saw_are_said_to_be(folder):
    np.savez("one.npz", image=images(1))
    assert "1 samples, which calibration saw too" in invoke("a.onnx", "--calib", "one.npz").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no.onnx", "--calib", "calib.npz"), "no.onnx: no such file"),
        (("a.onnx", "--calib", "nowhere"), "--calib nowhere: no such file"),
        (("a.onnx", "--calib", "calib.npz", "--recipe", "best"), "--recipe best: unknown"),
        (("a.onnx", "--calib", "calib.npz", "--target", "toaster"), "--target toaster: unknown"),
        (("a.onnx", "--calib", "calib.npz", "--set", "quantise.bits=8"), "no such pass"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, said):
    assert said in invoke.error(*arguments)


def test_nothing_to_quantize_is_one_line(folder):
    onnx.save(parse("g (float[N, 3, 8, 8] image) => (float[N, 3, 8, 8] y) { y = Relu (image) }"), "relu.onnx")
    assert "relu.onnx: nothing to quantize" in invoke.error("relu.onnx", "--calib", "calib.npz")


def test_calibration_data_is_required(folder):
    assert invoke("a.onnx").exit_code == 2
