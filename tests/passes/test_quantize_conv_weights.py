"""Conv weights become integer initializers behind a DequantizeLinear, on the right axis, in what the target takes."""

import numpy as np
import onnx
import pytest
from onnxquant.passes.insert_quantizers import InsertQuantizers
from onnxquant.passes.quantize_conv_weights import QuantizeConvWeights

from onnxquant.blocks import Blocks
from onnxquant.calibration.observers import ChannelMean
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from onnxquant.targets import load_target
from tests.graphs import initializers, op_types, parse, run


def convolution(op, weight, attributes="", dtype="float", opset=17):
    """X -> op(x, weight), with x of 4 channels."""
    return parse(
        f"g ({dtype}[N, 4, 8, 8] x) => ({dtype}[N, C, H, W] y) {{ y = {op} {attributes} (x, w) }}", opset, w=weight
    )


def normal(*shape):
    return (
        np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    )  # the same in whatever order tests run


def quantize(proto, target="onnxruntime", means=None, **options):
    """The model as the pass and the insertion leave it, and the plan."""
    model = load(proto)
    context = PassContext(model, load_target(target), blocks=Blocks([]))
    if means is not None:
        observed = ChannelMean()
        observed.update(np.asarray(means, np.float32)[None, :, None, None])
        context.observations[("x", ChannelMean)] = observed
    QuantizeConvWeights(**options).run(model.graph, context)
    InsertQuantizers().run(model.graph, context)
    result = model.to_proto()
    onnx.checker.check_model(result, full_check=True)
    return result, context.plan


def dequantized(proto):
    """The weight that the runtime convolves with."""
    tensors = initializers(proto)
    node = next(node for node in proto.graph.node if node.op_type == "DequantizeLinear")
    codes, scale, zero_point = (tensors[name] for name in node.input)
    shape = [1] * codes.ndim
    if node.attribute:
        shape[node.attribute[0].i] = -1
    return (codes.astype(np.float32) - zero_point.reshape(shape if zero_point.ndim else ())) * (
        scale.reshape(shape if scale.ndim else ())
    )


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "axis"),
    [
        ("Conv", (6, 4, 3, 3), "", 0),
        ("Conv", (8, 2, 3, 3), "<group = 2>", 0),
        ("Conv", (8, 1, 3, 3), "<group = 4>", 0),
        ("ConvTranspose", (4, 6, 3, 3), "", 1),
        ("ConvTranspose", (4, 3, 3, 3), "<group = 2>", 1),
        ("ConvTranspose", (4, 1, 3, 3), "<group = 4>", 0),
    ],
)
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_every_kind_of_convolution_keeps_its_output(op, shape, attributes, axis, target):
    proto = convolution(op, normal(*shape), attributes)
    result, plan = quantize(proto, target)
    assert plan.entries[0].quantizer.axis == axis
    assert op_types(result) == ["DequantizeLinear", op]
    x = normal(2, 4, 8, 8)
    exact, quantized = run(proto, x=x)[0], run(result, x=x)[0]
    assert np.linalg.norm(quantized - exact) < 0.02 * np.linalg.norm(exact)


def test_no_float_copy_of_the_weight_is_left():
    result, _ = quantize(convolution("Conv", normal(6, 4, 3, 3)))
    assert not [name for name, values in initializers(result).items() if values.dtype == np.float32 and values.size > 6]


def test_onnxruntime_gets_the_papers_asymmetric_uint8_and_tensorrt_symmetric_int8():
    proto = convolution("Conv", normal(6, 4, 3, 3) + 0.5)
    asymmetric = initializers(quantize(proto, "onnxruntime")[0])
    symmetric = initializers(quantize(proto, "tensorrt")[0])
    assert asymmetric["w_quantized"].dtype == np.uint8
    assert asymmetric["w_zero_point"].any()
    assert symmetric["w_quantized"].dtype == np.int8
    assert not symmetric["w_zero_point"].any()


def test_asymmetric_weights_for_a_target_without_zero_points_are_refused():
    with pytest.raises(
        OnnxquantError, match="scheme=asymmetric needs uint8 and zero-points, which target tensorrt refuses"
    ):
        quantize(convolution("Conv", normal(6, 4, 3, 3)), "tensorrt", scheme="asymmetric")


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_use_no_more_than_the_bits_asked_for(bits):
    codes = initializers(quantize(convolution("Conv", normal(6, 4, 3, 3)), bits=bits)[0])["w_quantized"]
    assert codes.max() - codes.min() < 2**bits
    assert len(np.unique(codes)) > 2 ** (bits - 1)


def test_per_tensor_has_one_scale():
    tensors = initializers(quantize(convolution("Conv", normal(6, 4, 3, 3)), granularity="per_tensor")[0])
    assert tensors["w_scale"].shape == ()


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_all_zero_constant_and_tiny_channels_survive(target):
    weight = normal(4, 4, 1, 1)
    weight[0], weight[1], weight[2] = 0, 0.25, 1e-42
    result, _ = quantize(convolution("Conv", weight), target)
    assert (initializers(result)["w_scale"] > 0).all()
    np.testing.assert_allclose(dequantized(result)[:3], weight[:3], rtol=1e-5, atol=1e-37)
    assert np.isfinite(run(result, x=normal(1, 4, 8, 8))[0]).all()


def test_a_kernel_that_sums_to_zero_still_does():
    weight = normal(4, 1, 3, 3)
    weight -= weight.mean(axis=(1, 2, 3), keepdims=True)
    proto = convolution("Conv", weight, "<group = 4>")
    scale = initializers(quantize(proto)[0])["w_scale"]

    def sums_in_steps(**options):
        return np.abs(dequantized(quantize(proto, **options)[0]).sum(axis=(1, 2, 3)) / scale)

    assert (sums_in_steps() <= 0.5 + 1e-3).all()
    assert sums_in_steps(rounding="nearest").max() > 0.5


@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [("Conv", (6, 4, 3, 3), ""), ("Conv", (8, 2, 3, 3), "<group = 2>"), ("ConvTranspose", (4, 3, 3, 3), "<group = 2>")],
)
def test_calibration_means_weight_the_sum_that_is_kept(op, shape, attributes):
    proto = convolution(op, normal(*shape), attributes)
    means = np.array([10.0, -3.0, 0.5, 7.0], np.float32)
    x = np.broadcast_to(means[None, :, None, None], (1, 4, 8, 8)).astype(np.float32)

    def error_of_the_mean(result):
        inside = (..., slice(2, -2), slice(2, -2))  # at the borders some taps see no input
        return np.abs(run(result, x=x)[0][inside] - run(proto, x=x)[0][inside]).mean()

    with_means, without = quantize(proto, means=means)[0], quantize(proto, rounding="nearest")[0]
    assert error_of_the_mean(with_means) < 0.5 * error_of_the_mean(without)


def test_excluded_layers_stay_in_float_by_name_or_scope():
    proto = convolution("Conv", normal(6, 4, 3, 3))
    proto.graph.node[0].name = "/stem/conv/Conv"
    assert quantize(proto, exclude=["^stem"])[1].entries == []
    assert quantize(proto, exclude=["Conv$"])[1].entries == []
    assert len(quantize(proto, exclude=["head"])[1].entries) == 1


def test_a_pattern_that_matches_nothing_is_mentioned():
    model = load(convolution("Conv", normal(6, 4, 3, 3)))
    result = QuantizeConvWeights(exclude=["zzz"]).run(model.graph, PassContext(model, blocks=Blocks([])))
    assert "exclude 'zzz' matches no convolution" in result.notes


def test_convolutions_out_of_reach_are_counted():
    proto = parse(
        """g (float[1, 4, 8, 8] x, bool c) => (float[1, 4, 8, 8] y) {
            y = If (c) <
                then_branch = yes () => (float[1, 4, 8, 8] t) { t = Conv (x, w) },
                else_branch = no () => (float[1, 4, 8, 8] e) { e = Neg (x) }
            >
        }""",
        w=normal(4, 4, 1, 1),
    )
    model = load(proto)
    result = QuantizeConvWeights().run(model.graph, PassContext(model, blocks=Blocks([])))
    assert "1 convolutions in subgraphs and functions left in float" in result.notes


def test_names_that_the_graph_has_already_are_not_taken_again():
    proto = parse(
        """g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {
            h = Conv (x, w)
            w_dequantized = Mul (h, w_scale)
            y = Add (w_dequantized, w_quantized)
        }""",
        w=normal(6, 4, 1, 1),
        w_scale=normal(6, 1, 1),
        w_quantized=normal(6, 1, 1),
    )
    result, _ = quantize(proto)
    x = normal(2, 4, 8, 8)
    exact, quantized = run(proto, x=x)[0], run(result, x=x)[0]
    assert np.linalg.norm(quantized - exact) < 0.02 * np.linalg.norm(exact)


def test_a_double_precision_convolution_is_left_alone():
    proto = convolution("Conv", normal(6, 4, 3, 3).astype(np.float64), dtype="double")
    assert op_types(quantize(proto)[0]) == ["Conv"]


def test_small_float16_weights_keep_their_accuracy():
    weight = (1e-3 * normal(6, 4, 3, 3)).astype(np.float16)
    result, _ = quantize(convolution("Conv", weight, dtype="float16", opset=19))
    error = dequantized(result).astype(np.float32) - weight
    assert np.linalg.norm(error) < 0.01 * np.linalg.norm(weight.astype(np.float32))


def test_a_convolution_with_a_computed_weight_is_left_alone():
    proto = parse("g (float[1, 4, 8, 8] x, float[6, 4, 3, 3] w) => (float[1, 6, H, W] y) { y = Conv (x, w) }")
    assert op_types(quantize(proto)[0]) == ["Conv"]


def test_a_float16_convolution_stays_float16():
    proto = convolution("Conv", normal(6, 4, 3, 3).astype(np.float16), dtype="float16", opset=19)
    result, _ = quantize(proto)
    assert initializers(result)["w_scale"].dtype == np.float16
    x = normal(2, 4, 8, 8).astype(np.float16)
    exact, quantized = run(proto, x=x)[0].astype(np.float32), run(result, x=x)[0]
    assert quantized.dtype == np.float16
    assert np.linalg.norm(quantized - exact) < 0.02 * np.linalg.norm(exact)


def test_a_weight_with_nan_is_an_error_that_names_the_node():
    weight = normal(6, 4, 3, 3)
    weight[0, 0, 0, 0] = np.nan
    proto = convolution("Conv", weight)
    proto.graph.node[0].name = "stem"
    with pytest.raises(OnnxquantError, match="weight of node stem has NaN or infinite values"):
        quantize(proto)
