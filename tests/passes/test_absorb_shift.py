"""absorb_shift: x - m is quantized and m comes back by the bias, exactly."""

import numpy as np
import pytest

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from onnxquant.plan import QuantizationPlan
from tests.graphs import op_types, parse, run

RNG = np.random.default_rng(1)
OFF = "absorb_shift.min_gain=99"


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape):
    """What a SiLU gives: nearly nothing below 0."""
    return np.maximum(normal(*shape), -0.2)


def w8a8(proto, data, target="tensorrt", *overrides):
    return rewrite(proto, recipe="w8a8", calibration=data, target=target, overrides=overrides, min_sqnr=-99)


def conv(attributes="kernel_shape = [3, 3], pads = [1, 0, 2, 1]", bias=True):
    inputs = "x, weight, bias" if bias else "x, weight"
    text = f"model (float[N, 8, 6, 6] x) => (float[N, 4, h, w] y) {{ y = Conv <{attributes}> ({inputs}) }}"
    weights = {"weight": normal(4, 8, 3, 3) + 0.1, **({"bias": normal(4)} if bias else {})}
    return parse(text, **weights)


def matmul(behind=""):
    last = "product" if behind else "y"
    text = f"model (float[N, 5, 8] x) => (float[N, 5, 6] y) {{ {last} = MatMul (x, weight)\n {behind} }}"
    return parse(text, weight=normal(8, 6), **({"bias": normal(6)} if behind else {}))


def gemm():
    text = "model (float[N, 8] x) => (float[N, 6] y) { y = Gemm <transB = 1> (x, weight, bias) }"
    return parse(text, weight=normal(6, 8), bias=normal(6))


LAYERS = {
    "a Conv with uneven padding": (conv(), (6, 8, 6, 6)),
    "a Conv without bias": (conv(bias=False), (6, 8, 6, 6)),
    "a strided Conv": (conv("kernel_shape = [3, 3], strides = [2, 2]"), (6, 8, 6, 6)),
    "a MatMul": (matmul(), (6, 5, 8)),
    "a MatMul and an Add": (matmul("y = Add (product, bias)"), (6, 5, 8)),
    "a Gemm": (gemm(), (6, 8)),
}


@pytest.mark.parametrize(("proto", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_shift_makes_the_output_nearer_and_nothing_else_changes(proto, shape):
    data = positive(32, *shape[1:])
    coarse = "quantize_activations.bits=4"  # so that the activation's error is what counts
    shifted, plain = w8a8(proto, data, "tensorrt", coarse), w8a8(proto, data, "tensorrt", coarse, OFF)
    x = positive(*shape)
    (expected,) = run(proto, x=x)
    errors = [np.square(run(result.model, x=x)[0] - expected).mean() for result in (shifted, plain)]
    assert shifted.plan.entries[-1].shift
    assert "Sub" in op_types(shifted.model)
    assert errors[0] < errors[1] / 1.5
    assert run(shifted.model, x=x)[0].shape == expected.shape


def test_zero_stays_exact():
    result = w8a8(conv(), positive(32, 8, 6, 6))
    entry = next(entry for entry in result.plan.entries if entry.shift)
    steps = entry.shift / float(entry.quantizer.scale)
    assert steps == pytest.approx(round(steps), abs=1e-4)


def test_a_symmetric_activation_is_left_as_it_is():
    result = w8a8(conv(), normal(32, 8, 6, 6))
    assert all(not entry.shift for entry in result.plan.entries)
    assert "Sub" not in op_types(result.model)


def test_a_target_with_zero_points_has_nothing_to_absorb():
    result = w8a8(conv(), positive(32, 8, 6, 6), "onnxruntime", "quantize_conv_weights.where=all")
    assert all(not entry.shift for entry in result.plan.entries)


@pytest.mark.parametrize(
    "attributes", ['kernel_shape = [3, 3], auto_pad = "SAME_UPPER"', 'kernel_shape = [3, 3], auto_pad = "SAME_LOWER"']
)
def test_padding_that_the_node_does_not_state_cannot_be_shifted(attributes):
    result = w8a8(conv(attributes), positive(32, 8, 6, 6))
    assert all(not entry.shift for entry in result.plan.entries)


def test_a_shift_that_no_bias_can_make_up_for_is_refused_in_a_plan():
    text = "model (float[N, 5, 8] x) => (float[N, 5, 5] y) { t = Transpose <perm = [0, 2, 1]> (x)\n y = MatMul (x, t) }"
    proto = parse(text)
    document = w8a8(proto, positive(32, 5, 8)).plan.model_dump()
    document["entries"][0]["shift"] = 0.5
    with pytest.raises(OnnxquantError, match="tensor x can't be shifted: no bias of its consumers"):
        rewrite(proto, plan=QuantizationPlan.model_validate(document))


def test_two_convolutions_with_different_padding_share_a_shifted_value():
    text = """
        model (float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y) {
            near = Conv <kernel_shape = [1, 1]> (x, small)
            far = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, large)
            y = Add (near, far)
        }
    """
    proto = parse(text, small=normal(4, 8, 1, 1), large=normal(4, 8, 3, 3))
    data = positive(32, 8, 6, 6)
    result = w8a8(proto, data)
    (expected,), (got,) = run(proto, x=data[:4]), run(result.model, x=data[:4])
    assert 10 * np.log10(np.square(expected).sum() / np.square(got - expected).sum()) > 35


def test_the_bias_is_made_of_the_weights_as_they_are_quantized():
    """Their rounding keeps the sum over the channels' means; float weights would bring its error back."""
    data = positive(64, 8, 6, 6)
    coarse = "quantize_conv_weights.bits=3"
    proto = conv()
    (expected,) = run(proto, x=data)
    shifted, plain = (run(w8a8(proto, data, "tensorrt", coarse, *off).model, x=data)[0] for off in ((), (OFF,)))
    assert np.abs((shifted - expected).mean()) < 1.5 * np.abs((plain - expected).mean()) + 1e-3


def test_a_residual_add_reads_the_value_itself_where_its_layer_reads_a_shifted_one():
    text = """
        model (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
            stream = Relu (x)
            wide = Conv <kernel_shape = [1, 1]> (stream, first)
            bent = Relu (wide)
            branch = Conv <kernel_shape = [1, 1]> (bent, second)
            y = Add (branch, stream)
        }
    """
    proto = parse(text, first=normal(16, 8, 1, 1), second=normal(8, 16, 1, 1))
    for overrides, shared in ((), False), ((OFF,), True):
        result = w8a8(proto, normal(8, 8, 6, 6), "tensorrt", *overrides)
        add = next(node for node in result.model.graph.node if node.op_type == "Add")
        assert ("stream" not in add.input) is shared
        entry = next(entry for entry in result.plan.entries if entry.tensor == "stream")
        assert (entry.shift is None) is shared
