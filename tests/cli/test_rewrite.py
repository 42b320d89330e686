"""`onnxquant rewrite` as users meet it: a process, its output, its files."""

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.graphs import attention, images

DEMO = Path(__file__).parents[2] / "models" / "demo"


def onnxquant(*arguments, cwd=None):
    command = [Path(sys.executable).with_name("onnxquant"), *map(str, arguments)]  # the installed one, wherever we are
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture
def folder(tmp_path):
    """A model and its calibration data."""
    onnx.save(attention(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", image=images(32))
    return tmp_path


def test_the_plain_command_writes_a_quantized_file_beside_the_input(folder):
    before = (folder / "model.onnx").read_bytes()
    done = onnxquant("rewrite", "model.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    operators = {node.op_type for node in onnx.load(folder / "model.q.onnx").graph.node}
    assert {"DequantizeLinear", "Log2QuantizeLinear", "Log2DequantizeLinear"} <= operators
    assert (folder / "model.onnx").read_bytes() == before
    assert "agreement not measured: no data" in done.stdout


def test_the_summary_says_what_was_found_and_what_it_cost(folder):
    done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "-o", "q.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    for expected in (
        "1 attention", "2 x weight, uniform 8 bit", "1 x activation, log2 8 bit", "bytes", "SQNR", "cosine",
        "top-1 agreement", "held-back samples", "classify_blocks", "ms", "q.onnx",
    ):  # fmt: skip
        assert expected in done.stdout, expected


def test_json_is_all_there_is_on_stdout(folder):
    done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "--json", cwd=folder)
    document = json.loads(done.stdout)
    assert document["quantized"] == {"weight, uniform 8 bit": 2, "activation, log2 8 bit": 1}
    assert document["agreement"]["probabilities"]["sqnr_db"] > 30
    assert document["held_back"] is True
    assert document["samples"] == 8
    assert document["bytes_after"] == (folder / "model.q.onnx").stat().st_size


def test_the_same_command_gives_the_same_bytes(folder):
    def digest(name, *more):
        assert onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "-o", name, *more, cwd=folder).returncode == 0
        return hashlib.sha256((folder / name).read_bytes()).digest()

    assert digest("a.onnx") == digest("b.onnx")
    assert digest("a.onnx") == digest("c.onnx", "--batch-size", "1")


def test_a_plan_can_be_kept_and_used_again(folder):
    onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "-o", "a.onnx", "--plan-out", "plan.json", cwd=folder)
    done = onnxquant("rewrite", "model.onnx", "--plan", "plan.json", "-o", "b.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_every_pass_can_be_verified_and_dumped(folder):
    done = onnxquant(
        "rewrite", "model.onnx", "--calib", "calib.npz", "--verify-each", "--dump-dir", "dumps", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "verify insert_quantizers: checker passed" in done.stderr
    dumps = sorted(path.name for path in (folder / "dumps").iterdir())
    assert dumps[0] == "00_fold_constants.onnx"
    assert dumps[-1].endswith("_pack_int4.onnx")
    for name in dumps:
        ort.InferenceSession(folder / "dumps" / name, providers=["CPUExecutionProvider"])


def test_a_result_below_the_tolerance_is_not_written_and_names_the_worst_tensors(folder):
    few_bits = ("--recipe", "w8a8", "--set", "quantize_conv_weights.bits=2", "--set", "quantize_activations.bits=2")
    done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "--target", "tensorrt", *few_bits, cwd=folder)
    assert done.returncode == 3
    assert "less than 10 dB is not accepted (--min-sqnr); worst tensors: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "model.q.onnx").exists()


def test_a_budget_leaves_the_tensors_in_float_that_it_names(folder):
    done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "--min-sqnr", "60", cwd=folder)
    assert done.returncode == 0, done.stderr
    named = [line.split()[3] for line in done.stdout.splitlines() if line.startswith("left in float")]
    assert named
    assert "of the noise when quantized alone (--min-sqnr 60)" in done.stdout
    stored = {tensor.name for tensor in onnx.load(folder / "model.q.onnx").graph.initializer}
    assert not any(f"{tensor.rstrip(':')}_quantized" in stored for tensor in named)


def test_a_budget_beyond_reach_writes_nothing_and_says_what_came_nearest(folder):
    done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "--min-sqnr", "300", cwd=folder)
    assert done.returncode == 3
    assert "--min-sqnr 300 can't be reached; the best is " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "model.q.onnx").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-drop", "0.5"), "--max-drop 0.5: must be a percentage, for example 0.5%"),
        (("--max-drop", "100%"), "--max-drop 100%: must be a percentage, for example 0.5%"),
        (("--min-speedup", "1", "--target", "tensorrt"), "--min-speedup 1: measured in ONNX Runtime, which target"),
    ],
)
def test_a_budget_that_cannot_be_judged_is_an_error(folder, options, said):
    done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", *options, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_input_is_written_over_only_when_asked(folder):
    before = (folder / "model.onnx").read_bytes()
    refused = onnxquant("rewrite", "model.onnx", "-o", "model.onnx", cwd=folder)
    assert refused.returncode == 2
    assert "is the input itself (MODEL); give another path, or --overwrite" in refused.stderr
    assert (folder / "model.onnx").read_bytes() == before
    assert onnxquant("rewrite", "model.onnx", "-o", "model.onnx", "--overwrite", cwd=folder).returncode == 0
    assert (folder / "model.onnx").read_bytes() != before


def test_targets_without_zero_points_get_symmetric_weights(folder):
    onnxquant("rewrite", "model.onnx", "--target", "tensorrt", cwd=folder)
    codes = [
        tensor for tensor in onnx.load(folder / "model.q.onnx").graph.initializer if tensor.name.endswith("_quantized")
    ]
    assert {tensor.data_type for tensor in codes} == {onnx.TensorProto.INT8}


def test_a_terminal_shows_the_pass_that_is_running_and_the_time_left(folder):
    master, slave = pty.openpty()
    options = ["--recipe", "q-hyvit", "--target", "reference", "--set", "search_scales.candidates=10"]
    options += ["--set", "search_scales.rounds=1", "--min-sqnr=-100"]
    command = [Path(sys.executable).with_name("onnxquant"), "rewrite", "model.onnx", "--calib", "calib.npz", *options]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(master)
    assert process.returncode == 0
    for stage in ("calibrate", "search_scales"):
        assert re.search(rf"{stage}.*\d+%.*[-\d]:[-\d]+:[-\d]+.*left", shown.decode()), stage


def test_the_demo_keeps_its_accuracy(tmp_path):
    model, held = DEMO / "mobilevit_xxs_digits.onnx", DEMO / "digits.npz"
    done = onnxquant("rewrite", model, "--calib", DEMO / "digits_train.npz", "-o", tmp_path / "q.onnx")
    assert done.returncode == 0, done.stderr

    def top1(path):
        return json.loads(onnxquant("evaluate", path, "--data", held, "--json").stdout)["top1"]

    original = top1(model)
    assert original >= 0.97
    assert abs(top1(tmp_path / "q.onnx") - original) <= 0.003


def test_help_is_quick_and_lists_the_verbs():
    script = "import time; s = time.perf_counter(); import onnxquant.cli, sys; print(sorted(sys.modules))"
    command = [sys.executable, "-I", "-c", script]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for heavy in ("numpy", "onnx", "onnxruntime", "pydantic", "torch", "PIL"):
        assert f"'{heavy}'" not in modules, f"{heavy} is imported before a verb needs it"
    text = onnxquant("--help").stdout
    for verb in (
        "rewrite", "blocks", "calibrate", "compare", "evaluate", "bench", "check", "build", "sensitivity", "report",
        "export", "passes", "recipes",
        "targets",
    ):  # fmt: skip
        assert verb in text
    assert "Exit codes" in text


@pytest.mark.parametrize("exporter", ["", ".dynamo"])
def test_both_exporters_give_the_same_blocks_and_quantizers(tmp_path, exporter):
    model = DEMO / f"mobilevit_xxs_digits{exporter}.onnx"
    done = onnxquant("rewrite", model, "--calib", DEMO / "digits_train.npz", "-o", tmp_path / "q.onnx", "--json")
    report = json.loads(done.stdout)
    assert report["blocks"] == {"conv": 29, "attention": 9, "mlp": 9, "bridge": 3, "norm": 21, "head": 1}
    assert report["quantized"] == {"weight, uniform 8 bit": 35, "activation, log2 8 bit": 9}
    assert report["agreement"]["logits"]["sqnr_db"] > 40


def test_ranges_can_be_kept_and_used_instead_of_the_data(folder):
    done = onnxquant("calibrate", "model.onnx", "--calib", "calib.npz", "-o", "ranges.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "-o", "a.onnx", cwd=folder)
    done = onnxquant("rewrite", "model.onnx", "--ranges", "ranges.json", "-o", "b.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "3 tensors as measured on 24 samples before" in done.stdout
    assert "agreement not measured: no data" in done.stdout
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_data_beside_ranges_judges_the_result_on_what_was_held_back(folder):
    def agreement(*options):
        done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "--json", *options, cwd=folder)
        document = json.loads(done.stdout)
        return document["agreement"], document["samples"], document["held_back"]

    onnxquant("calibrate", "model.onnx", "--calib", "calib.npz", "-o", "ranges.json", "--samples", 4, cwd=folder)
    assert agreement("--ranges", "ranges.json") == agreement("--samples", 4)


def test_ranges_of_another_model_are_refused_and_nothing_is_written(folder):
    onnxquant("calibrate", "model.onnx", "--calib", "calib.npz", "-o", "ranges.json", cwd=folder)
    onnx.save(attention(channels=16), folder / "wide.onnx")
    done = onnxquant("rewrite", "wide.onnx", "--ranges", "ranges.json", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "ranges: were measured on another model (model.onnx) than wide.onnx" in done.stderr
    assert not (folder / "wide.q.onnx").exists()


def test_a_plan_leaves_no_room_for_ranges(folder):
    (folder / "x.json").touch()
    done = onnxquant("rewrite", "model.onnx", "--plan", "x.json", "--ranges", "x.json", cwd=folder)
    assert done.returncode == 2
    assert "--plan: holds all decisions already; leave out --recipe, --set, --ranges and --resume" in done.stderr


def test_what_is_not_quantized_computes_in_float16_on_request(folder):
    done = onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "--float-type", "fp16", cwd=folder)
    assert done.returncode == 0, done.stderr
    onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", "-o", "single.onnx", cwd=folder)
    rewritten = onnx.load(folder / "model.q.onnx")
    assert "nodes in float16" in done.stdout
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in rewritten.graph.initializer}
    assert [value.type.tensor_type.elem_type for value in rewritten.graph.output] == [onnx.TensorProto.FLOAT]
    assert (folder / "model.q.onnx").stat().st_size != (folder / "single.onnx").stat().st_size


def test_ranges_serve_float16_too(folder):
    half = ("--float-type", "fp16")
    onnxquant("calibrate", "model.onnx", "--calib", "calib.npz", "-o", "ranges.json", cwd=folder)
    done = onnxquant("rewrite", "model.onnx", "--ranges", "ranges.json", *half, "-o", "a.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    onnxquant("rewrite", "model.onnx", "--calib", "calib.npz", *half, "-o", "b.onnx", cwd=folder)
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_an_unknown_float_type_is_refused(folder):
    done = onnxquant("rewrite", "model.onnx", "--float-type", "fp8", cwd=folder)
    assert done.returncode == 2
    assert "--float-type fp8: unknown; choose one of fp32, fp16" in done.stderr
