"""Layers compute in the optimised runtime what the plan says: what it has rounded is not rounded again."""

import onnx
import onnxruntime as ort
import pytest

from onnxquant.measure.metrics import sqnr_db
from onnxquant.search.simulate import simulate_plan
from tests.graphs import op_types, run
from tests.passes.skewed import ONE_NODE, mlp, quantized, tokens

AS_GEMM = """
    mlp (float[N, 8] x) => (float[N, 8] y) {
        hidden = MatMul (x, first)
        active = Gelu (hidden)
        y = Gemm (active, second)
    }
"""


def optimised(result, folder):
    """The graph that ONNX Runtime makes of a result."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that the file is for this machine
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(result.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


@pytest.mark.parametrize(("text", "data"), [(ONE_NODE, tokens()), (AS_GEMM, tokens()[:, 0])], ids=["MatMul", "Gemm"])
@pytest.mark.parametrize("step", ["quantize_gelu", "quantize_twin_uniform"])
@pytest.mark.parametrize("target", ["reference", "tensorrt"])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_activation_with_codes_that_the_runtime_does_not_know_is_not_rounded_again(
    tmp_path, text, data, step, target, bits
):
    result = quantized(tmp_path, step, mlp(text), data, target, **{"quantize_linear_weights.bits": bits})
    layer = next(node for node in result.model.graph.node if node.output[0] == "y")
    weight = next(node for node in result.model.graph.node if node.output[0] == layer.input[1])
    assert weight.op_type == "Flatten"
    assert "MatMulNBits" not in op_types(optimised(result, tmp_path))
    expected = simulate_plan(mlp(text), result.plan).run({"x": data})["y"].detach().numpy()
    assert sqnr_db(expected, run(result.model, x=data)[0]) > 100


@pytest.mark.parametrize(("off", "kernel"), [("[]", "MatMulIntegerToFloat"), ('[".*"]', "MatMulNBits")])
def test_other_layers_keep_the_form_that_the_runtime_has_kernels_for(tmp_path, off, kernel):
    result = quantized(tmp_path, "", mlp(), tokens(), "reference", **{"quantize_activations.exclude": off})
    assert "Flatten" not in op_types(result.model)
    assert op_types(optimised(result, tmp_path)).count(kernel) == 2
