"""`onnxquant bench` on the command line."""

import json
import math

import numpy as np
import onnx
import pytest

from onnxquant.cli.bench import bench_command
from tests.cli.invoking import Verb
from tests.graphs import attention, images, parse

invoke = Verb(bench_command)
QUICK = ("--runs", 3, "--warmup", 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(attention(), "a.onnx")
    onnx.save(attention(), "[red]b.onnx")
    np.savez("d.npz", image=images(4))
    return tmp_path


def test_a_table_has_a_line_for_each_model_with_its_name_as_it_is(folder):
    result = invoke("a.onnx", "[red]b.onnx", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "3 rounds on cpu, batch 1; ratio to the first, 95 % interval"
    assert lines[1].startswith("model")
    first, second = lines[2].split(), lines[3].split()
    assert first[0] == "a.onnx"
    assert first[4] == "1.000"
    assert second[0] == "[red]b.onnx"
    assert 0.1 < float(second[4]) < 10
    assert "GPU" not in lines[1]
    assert len(lines) == 4
    assert result.stderr == ""


def test_json_is_all_there_is_on_stdout(folder):
    result = invoke("a.onnx", "[red]b.onnx", "--json", "--batch", 2, "--threads", 1, *QUICK)
    document = json.loads(result.stdout)
    assert (document["provider"], document["runs"], document["threads"]) == ("cpu", 3, 1)
    assert [entry["model"] for entry in document["models"]] == ["a.onnx", "[red]b.onnx"]
    for entry in document["models"]:
        assert entry["batch"] == 2
        assert len(entry["rounds_ms"]) == 3
        assert 0 < entry["min_ms"] <= entry["p10_ms"] <= entry["median_ms"] <= entry["p90_ms"]
        assert entry["samples_per_second"] == pytest.approx(2000 / entry["median_ms"])
        assert entry["gpu_bytes"] is None
        for figure in ("ratio", "load_ms", "memory_bytes", "file_bytes", "weight_bytes"):
            assert 0 < entry[figure] < math.inf
        assert entry["ratio_interval"][0] <= entry["ratio"] <= entry["ratio_interval"][1]


def test_data_replaces_random_values(folder):
    assert json.loads(invoke("a.onnx", "--data", "d.npz", "--batch", 4, "--json", *QUICK).stdout)["models"][0]["batch"]
    assert "d.npz: has 4 samples, too few for --batch 5" in invoke.error("a.onnx", "--data", "d.npz", "--batch", 5)


def test_shapes_are_given_by_input(folder):
    onnx.save(parse("g (float[N, C, L] x) => (float[N, C, L] y) { y = Relu (x) }"), "free.onnx")
    assert invoke("free.onnx", "a.onnx", "--shape", "x=2x3x5", *QUICK).exit_code == 0
    assert "free.onnx: input x float32 (N, C, L) has dynamic axes; give its shape" in invoke.error("free.onnx")
    assert "--shape z: no model has this input, only image, x" in invoke.error(
        "free.onnx", "a.onnx", "--shape", "x=2x3x5", "--shape", "z=1"
    )
    assert "doesn't fit input x" in invoke.error("free.onnx", "--shape", "x=2x3")


@pytest.mark.parametrize("shape", ["1x3x8x8", "image=", "image=1x-3", "image=1xax3", "=1x3", "image=0x3x8x8"])
def test_a_shape_that_is_none(folder, shape):
    assert invoke.error("a.onnx", "--shape", shape) == (
        f"--shape {shape}: must be INPUT=SIZExSIZE..., for example image=1x3x224x224"
    )


def test_session_options_are_key_and_value(folder):
    assert invoke("a.onnx", "--session-option", "session.disable_quant_qdq=1", *QUICK).exit_code == 0
    assert "--session-option nonsense: must be KEY=VALUE" in invoke.error("a.onnx", "--session-option", "nonsense")


def test_options_for_data_and_for_random_values_exclude_each_other(folder):
    assert "--shape: is for random inputs" in invoke.error("a.onnx", "--data", "d.npz", "--shape", "image=1x3x8x8")
    assert "--preprocess: needs data" in invoke.error("a.onnx", "--preprocess", "unit")


def test_a_model_that_is_missing_or_none_is_named_before_any_is_timed(folder):
    assert invoke.error("a.onnx", "no.onnx") == "no.onnx: no such file"
    (folder / "bad.onnx").write_bytes(b"hello, world")
    assert "bad.onnx: not an ONNX file" in invoke.error("a.onnx", "bad.onnx")


def test_an_engine_is_not_measured_yet(folder):
    assert invoke.error("a.onnx", "model.engine").startswith("model.engine: TensorRT engines can't be measured yet")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_missing_is_named_with_those_that_are_there(folder, monkeypatch, provider):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert invoke.error("a.onnx", "--provider", provider).endswith(
        "only CPUExecutionProvider; install onnxruntime-gpu in its place"
    )


@pytest.mark.parametrize("option", [("--runs", 0), ("--batch", 0), ("--threads", 0), ("--provider", "abacus")])
def test_values_out_of_range_are_usage_errors(folder, option):
    assert invoke("a.onnx", *option).exit_code == 2
