"""quantize_activations: which values are quantized for whom, by target, and how the graph computes with them."""

import numpy as np
import onnx
import pytest

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from tests.graphs import attention, images, initializers, parse, run

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def w8a8(proto, data, target="tensorrt", *overrides):
    return rewrite(proto, recipe="w8a8", calibration=data, target=target, overrides=overrides, min_sqnr=-99)


def activations(result):
    return {entry.tensor: entry for entry in result.plan.entries if entry.role == "activation"}


def producers(model):
    return {output: node for node in model.graph.node for output in node.output}


RESIDUAL = """
    model (float[N, 16, 6, 6] image) => (float[N, 16, 6, 6] sum) {
        wide = Conv <kernel_shape = [1, 1]> (image, first)
        gate = Sigmoid (wide)
        silu = Mul (wide, gate)
        narrow = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (silu, second)
        sum = Add (narrow, image)
    }
"""


def residual():
    return parse(RESIDUAL, first=normal(32, 16, 1, 1), second=normal(16, 32, 3, 3) / 10)


def test_a_layer_reads_codes_and_the_residual_add_beside_it_the_original_value():
    result = w8a8(residual(), normal(8, 16, 6, 6))
    assert activations(result).keys() == {"image", "silu"}
    by_output = producers(result.model)
    add = by_output["sum"]
    assert "image" in add.input, "the skip of a residual is not quantized"
    convolution = by_output["wide"]
    assert by_output[convolution.input[0]].op_type == "DequantizeLinear"
    assert by_output[convolution.input[1]].op_type == "DequantizeLinear"


def test_nothing_stands_between_a_conv_and_its_silu_on_tensorrt():
    by_output = producers(w8a8(residual(), normal(8, 16, 6, 6)).model)
    assert by_output["gate"].input[0] == "wide"
    assert "wide" in by_output["silu"].input


def test_onnx_runtime_has_integer_convolutions_only_between_codes():
    result = w8a8(residual(), normal(8, 16, 6, 6), "onnxruntime", "quantize_activations.exclude=['none']")
    assert activations(result).keys() == {"silu", "narrow"}, "the 1x1 has too little work for integers"
    assert activations(result)["narrow"].consumers is None
    assert producers(result.model)["sum"].input[0] != "narrow"


def test_both_sides_of_a_product_of_activations_are_quantized_on_tensorrt_and_none_on_onnx_runtime():
    products = {"q", "kt", "probs", "v"}
    proto = attention(channels=64)
    assert products <= activations(w8a8(proto, images(32))).keys()
    for_onnx_runtime = activations(w8a8(proto, images(32), "onnxruntime"))
    assert any("read by Gemm" in entry.why for entry in for_onnx_runtime.values())
    assert not products & for_onnx_runtime.keys()


def test_a_layer_whose_weight_stays_in_float_reads_the_original_value():
    options = ("quantize_conv_weights.exclude=['Conv_14']",)
    assert "map" not in activations(w8a8(attention(), images(32), "tensorrt", *options))
    assert "map" in activations(w8a8(attention(), images(32)))


def test_layers_can_be_excluded_by_name():
    result = w8a8(attention(), images(32), "tensorrt", "quantize_activations.exclude=['Conv_14']")
    assert "map" not in activations(result)


def test_symmetric_targets_get_int8_without_zero_point_and_the_others_uint8():
    for target, dtype in (("tensorrt", np.int8), ("onnxruntime", np.uint8)):
        result = w8a8(residual(), normal(8, 16, 6, 6), target)
        values = initializers(result.model)
        quantizers = [node for node in result.model.graph.node if node.op_type == "QuantizeLinear"]
        assert quantizers
        for node in quantizers:
            assert values[node.input[2]].dtype == dtype
            assert target == "onnxruntime" or values[node.input[2]] == 0


def test_what_the_plan_says_is_what_the_runtime_computes():
    proto, data = residual(), normal(8, 16, 6, 6)
    result = w8a8(proto, data, "tensorrt", "absorb_shift.min_gain=99")
    entries = {entry.tensor: entry.quantizer for entry in result.plan.entries}
    image = normal(1, 16, 6, 6)
    by_output = producers(result.model)
    probe = onnx.ModelProto()
    probe.CopyFrom(result.model)
    codes = by_output[by_output["wide"].input[0]].input[0]
    probe.graph.output.append(onnx.helper.make_tensor_value_info(codes, onnx.TensorProto.INT8, None))
    assert np.array_equal(run(probe, image=image)[1], entries["image"].quantize(image).astype(np.int8))


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_below_8_bits_no_more_codes_are_used_than_there_are(bits):
    proto, data = residual(), normal(8, 16, 6, 6)
    result = w8a8(proto, data, "tensorrt", f"quantize_activations.bits={bits}", "absorb_shift.min_gain=99")
    by_output = producers(result.model)
    read = by_output["wide"].input[0]
    probe = onnx.ModelProto()
    probe.CopyFrom(result.model)
    probe.graph.output.append(onnx.helper.make_tensor_value_info(read, onnx.TensorProto.FLOAT, None))
    assert len(np.unique(run(probe, image=10 * normal(4, 16, 6, 6))[1])) <= 2**bits


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse", "moving_average"])
def test_every_way_to_choose_a_range_gives_a_model_near_the_original(method):
    result = w8a8(attention(), images(32), "tensorrt", f"quantize_activations.range={method}")
    assert result.report.sqnr_db > 15


def test_without_data_there_are_no_ranges_and_the_error_says_what_to_give():
    with pytest.raises(OnnxquantError, match=r"quantize_activations: .* give data with --calib"):
        rewrite(attention(), recipe="w8a8", target="tensorrt")


def test_asymmetric_codes_are_refused_where_the_target_has_none():
    with pytest.raises(OnnxquantError, match="quantize_activations: scheme=asymmetric needs uint8"):
        w8a8(attention(), images(32), "tensorrt", "quantize_activations.scheme=asymmetric")
