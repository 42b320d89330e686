"""`onnxquant check` on the command line."""

import json

import onnx
import pytest

from onnxquant import rewrite
from onnxquant.cli.check import check_command
from onnxquant.errors import OnnxquantError
from tests.cli.invoking import Verb
from tests.graphs import attention

check = Verb(check_command)


@pytest.fixture
def models(tmp_path):
    """One model for each of two runtimes, by target."""
    paths = {}
    for target in ("onnxruntime", "tensorrt"):
        paths[target] = tmp_path / f"[red]{target}.onnx"
        onnx.save(rewrite(attention(), target=target).model, paths[target])
    return paths


def test_an_accepted_model_is_one_line(models):
    result = check(models["tensorrt"], "--target", "tensorrt-rtx", "--compute-capability", "8.6")
    assert result.exit_code == 0
    assert result.stdout == f"{models['tensorrt']}: tensorrt-rtx accepts it\n"


def test_every_refused_node_is_a_line_and_the_error_names_the_first(models):
    result = check(models["onnxruntime"], "--target", "tensorrt")
    lines = result.stdout.splitlines()
    assert len(lines) > 2
    assert all(": " in line and line.endswith(")") for line in lines)
    assert lines[0].startswith("stem_weight_DequantizeLinear: ")
    assert isinstance(result.exception, OnnxquantError)
    assert result.exception.exit_code == 2
    assert str(result.exception).startswith(
        f"{models['onnxruntime']}: tensorrt refuses node stem_weight_DequantizeLinear: "
    )
    assert str(result.exception).endswith(f" (and {len(lines) - 1} more)")


def test_json_is_all_there_is_on_stdout(models):
    refused = json.loads(check(models["onnxruntime"], "--target", "tensorrt", "--json").stdout)
    assert refused["accepted"] is False
    assert set(refused["refusals"][0]) == {"node", "tensor", "rule", "message"}
    accepted = json.loads(check(models["tensorrt"], "--target", "tensorrt", "--json").stdout)
    assert accepted == {
        "model": str(models["tensorrt"]), "target": "tensorrt", "compute_capability": None, "accepted": True,
        "refusals": [],
    }  # fmt: skip


def test_what_only_one_gpu_lacks_is_refused_for_that_gpu(models):
    assert check(models["tensorrt"], "--target", "tensorrt-rtx", "--compute-capability", "8.0").exit_code == 0
    result = check(models["tensorrt"], "--target", "tensorrt-rtx", "--compute-capability", "7.5")
    assert "MatMul on float is not supported below compute capability 8.0" in result.stdout


def test_bad_input_is_one_line(models, tmp_path):
    model = models["tensorrt"]
    assert "no such file" in check.error(tmp_path / "none.onnx", "--target", "tensorrt")
    assert "--target tensorflow: unknown; choose one of " in check.error(model, "--target", "tensorflow")
    assert "--compute-capability 86: must be MAJOR.MINOR" in check.error(
        model, "--target", "tensorrt", "--compute-capability", "86"
    )
    (tmp_path / "text.onnx").write_text("no model")
    assert "not an ONNX file" in check.error(tmp_path / "text.onnx", "--target", "tensorrt")
    assert "not a valid ONNX graph" in check.error(_broken(tmp_path), "--target", "tensorrt")


def _broken(folder):
    model = attention()
    del model.graph.initializer[0]
    onnx.save(model, folder / "broken.onnx")
    return folder / "broken.onnx"
