"""`onnxquant bench` on the command line."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxquant.cli.bench import bench_command
from onnxquant.deploy.tensorrt import has_gpu
from onnxquant.measure import engines
from tests.cli.invoking import Verb
from tests.graphs import attention, images, parse
from tests.measure.stand_in import tensorrt_rtx as stand_in

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
        assert entry["runtime"] == "ONNX Runtime"
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


def test_an_engine_needs_a_gpu(folder):
    if has_gpu():
        pytest.skip("there is one")
    (folder / "a.plan").write_bytes(b"vtrt")
    expected = "a.plan: an engine runs on a GPU only, and there is none here; run onnxquant on the machine that has it"
    assert invoke.error("a.plan").startswith(expected)
    assert invoke.error("a.onnx", "a.plan").startswith(expected)


def test_an_engine_of_a_tensorrt_that_is_not_installed_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (folder / "a.engine").write_bytes(b"ftrt")
    assert invoke.error("a.engine") == (
        "a.engine: is no engine of TensorRT-RTX, and tensorrt is not installed; install it with "
        "pip install 'onnxquant[tensorrt]'"
    )
    assert invoke.error("missing.trt") == "missing.trt: can't be read (No such file or directory)"


@pytest.mark.parametrize(
    "option", [("--threads", 1), ("--session-option", "session.disable_quant_qdq=1"), ("--provider", "cuda")]
)
def test_options_of_onnx_runtime_are_none_of_an_engines(folder, option):
    assert invoke.error("a.plan", *option) == (
        f"{option[0]}: is for ONNX files, and there are only engines; leave it out"
    )


@pytest.fixture
def engine(folder, monkeypatch):
    """A TensorRT-RTX that runs engines without a GPU; x is (2 to 6, 4) there."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    monkeypatch.setenv("PYTHONPATH", str(Path(stand_in.__file__).parent))
    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    (folder / "a.plan").write_bytes(b"vtrt")


def test_engines_and_onnx_files_are_timed_side_by_side(engine):
    lines = invoke("a.onnx", "a.plan", "--batch", 2, *QUICK).stdout.splitlines()
    assert lines[0].startswith("3 rounds on cpu and TensorRT-RTX 1.")
    assert [line.split()[0] for line in lines[1:]] == ["model", "a.onnx", "a.plan"]
    document = json.loads(invoke("a.plan", "--batch", 2, "--json", *QUICK).stdout)
    assert document["models"][0]["runtime"].startswith("TensorRT-RTX 1.")
    assert (document["models"][0]["batch"], document["models"][0]["weight_bytes"]) == (2, 123)


def test_an_engine_takes_shapes_and_data_within_its_profile(engine):
    assert json.loads(invoke("a.plan", "--shape", "x=5x4", "--json", *QUICK).stdout)["models"][0]["batch"] == 5
    assert invoke.error("a.plan").startswith(
        "a.plan: input x can't be 1x4, the engine takes 2x4 to 6x4; change --batch"
    )
    assert invoke.error("a.plan", "--shape", "x=5x5").startswith("--shape x=5x5: doesn't fit input x float32 (?, 4)")
    np.savez("x.npz", x=np.ones((4, 4), np.float32))
    found = json.loads(invoke("a.plan", "--data", "x.npz", "--batch", 3, "--json", *QUICK).stdout)
    assert found["models"][0]["batch"] == 3


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_missing_is_named_with_those_that_are_there(folder, monkeypatch, provider):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert invoke.error("a.onnx", "--provider", provider).endswith(
        "only CPUExecutionProvider; install onnxruntime-gpu in its place"
    )


@pytest.mark.parametrize("option", [("--runs", 0), ("--batch", 0), ("--threads", 0), ("--provider", "abacus")])
def test_values_out_of_range_are_usage_errors(folder, option):
    assert invoke("a.onnx", *option).exit_code == 2
