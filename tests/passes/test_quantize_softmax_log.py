"""What the products of attention read of its Softmax is quantized on a logarithmic scale; other tensors are not."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import inliner
from onnxquant.passes.quantize_softmax_log import QuantizeSoftmaxLog

from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.calibration.histogram import Histogram
from onnxquant.errors import OnnxquantError
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.report.page_data import gather
from tests.graphs import attention, images, op_types, run
from tests.passes import skewed
from tests.passes.skewed import ONE_NODE, mlp, shifted, tokens


@pytest.fixture
def quantized(tmp_path):
    def quantize(proto=None, data=None, target="tensorrt", **options):
        overrides = {f"quantize_softmax_log.{option}": value for option, value in options.items()}
        data = images(32) if data is None else data
        return skewed.quantized(tmp_path, "quantize_softmax_log", proto or attention(), data, target, **overrides)

    return quantize


@pytest.mark.parametrize("target", ["tensorrt", "reference"])
def test_the_probabilities_reach_the_values_through_codes_and_nothing_else_does(quantized, target):
    result = quantized(target=target)
    assert list(shifted(result)) == ["probs"]
    assert shifted(result)["probs"].consumers == [n.name for n in result.model.graph.node if n.output[0] == "mixed"]
    nodes = {node.op_type: node for node in result.model.graph.node}
    assert nodes["ShiftLogQuantizeLinear"].input[0] == "probs"
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.sqnr_db > 20


def test_the_classifiers_softmax_is_left_alone(quantized):
    result = quantized()
    assert op_types(result.model).count("ShiftLogQuantizeLinear") == 1
    assert result.model.graph.node[-1].op_type == "Softmax"


def test_a_softmax_that_is_no_attention_is_left_alone(quantized):
    assert not shifted(quantized(mlp(ONE_NODE.replace("Gelu", "Softmax")), tokens()))


def test_where_the_target_multiplies_probabilities_in_float_they_stay_float(quantized):
    assert not shifted(quantized(target="onnxruntime"))


@pytest.mark.parametrize("option", ["2", '"2"'])
def test_with_base_2_it_is_the_log_int_softmax_of_fq_vit(quantized, option):
    quantizer = shifted(quantized(base=option, bits=4))["probs"].quantizer
    p = np.random.default_rng(0).random(1000).astype(np.float32) ** 8
    q = np.clip(np.round(-np.log2(p)), 0, 15)
    np.testing.assert_allclose(quantizer.fake_quantize(p), np.where(q < 15, 2**-q, 0), rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("base", ["2", "sqrt2", "adaptive"])
def test_zero_stays_zero_and_the_graph_stays_usable(quantized, base, bits):
    result = quantized(base=f'"{base}"', bits=bits)
    quantizer = shifted(result)["probs"].quantizer
    assert (quantizer.bits, quantizer.fake_quantize(np.zeros(1, np.float32))[0]) == (bits, 0)
    assert np.isfinite(run(result.model, image=images(4))[0]).all()


def probabilities():
    """Of heads that look at everything and heads that look at little: (4, 64, 64)."""
    logits = np.random.default_rng(0).standard_normal((4, 64, 64)) * np.array([0.5, 1, 3, 8])[:, None, None]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("base", "bits", "limit"),
    [("2", 4, 0.18), ("sqrt2", 4, 0.11), ("adaptive", 4, 0.11), ("adaptive", 6, 0.03), ("adaptive", 8, 0.011)],
)
def test_attention_output_keeps_the_accuracy_the_method_promises(base, bits, limit):
    p = probabilities()
    flat = p.reshape(4, -1)
    seen = Histogram()
    seen.update(flat.min(1), flat.max(1), flat.mean(1), flat)
    candidates = QuantizeSoftmaxLog(base=base, bits=bits).candidates("Softmax", seen, "float32")
    quantizer = min(candidates, key=lambda each: np.square(each.fake_quantize(p) - p).sum())
    values = np.random.default_rng(1).standard_normal((4, 64, 32)).astype(np.float32)

    def error(each):
        return np.linalg.norm(each.fake_quantize(p) @ values - p @ values) / np.linalg.norm(p @ values)

    assert error(quantizer) < limit
    on_the_range = Log2Quantizer.from_range(float(p.min()), float(p.max()), bits=bits, epsilon=1e-5)
    assert error(quantizer) < error(on_the_range)


def test_the_pass_chooses_the_candidate_of_least_squared_error(quantized):
    data = np.repeat(images(1), 32, axis=0)
    chosen = shifted(quantized(data=data, bits=4))["probs"].quantizer
    whole = onnx.ModelProto.FromString(attention().SerializeToString())
    whole.graph.output.append(onnx.ValueInfoProto(name="probs"))
    p = run(whole, image=data)[-1]
    flat = p.reshape(32, -1)
    seen = Histogram()
    seen.update(flat.min(1), flat.max(1), flat.mean(1), flat)

    def error(each):
        return float(np.square(each.fake_quantize(p) - p).mean())

    candidates = QuantizeSoftmaxLog(bits=4).candidates("Softmax", seen, "float32")
    assert error(chosen) <= 1.02 * min(map(error, candidates))  # the pass sees a histogram


def test_inlined_the_functions_leave_standard_operators_only(quantized):
    result = quantized()
    inlined = inliner.inline_local_functions(result.model)
    assert {node.domain for node in inlined.graph.node} == {""}
    np.testing.assert_array_equal(run(inlined, image=images())[0], run(result.model, image=images())[0])


def test_a_float16_graph_stays_float16():
    proto = attention(opset=19)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x = images(32).astype(np.float16)
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(proto))
    result = gs.export_onnx(QuantizeSoftmaxLog()(graph, x, "tensorrt"))
    assert "ShiftLogQuantizeLinear" in op_types(result)
    exact, found = (run(each, image=x)[0] for each in (proto, result))
    assert found.dtype == np.float16
    assert np.abs(found.astype(np.float32) - exact.astype(np.float32)).max() < 0.02


def test_the_report_draws_the_levels(quantized):
    proto, held = attention(), open_dataset(images(4), input_specs(attention()), None)
    page = gather(proto, quantized(base="sqrt2", bits=4), held)
    (card,) = page.attention
    assert card.row.parameters.startswith("base 1.414, levels up to ")
    assert card.row.parameters.endswith(", 0 below them")
    assert card.figure.comb.levels == 15
    assert card.figure.octaves >= 7


def test_ranges_must_be_measured():
    with pytest.raises(OnnxquantError, match=r"quantize_softmax_log: .*give data with --calib"):
        QuantizeSoftmaxLog()(gs.import_onnx(attention()), target="tensorrt")


def test_tensorrt_builds_it(quantized):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    from onnxquant.deploy.build import build_engine

    for bits in (8, 4):
        assert build_engine(quantized(bits=bits).model, compute_capabilities=("8.6",)).plan
