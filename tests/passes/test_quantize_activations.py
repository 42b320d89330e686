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


BRIEF = [f"search_scales.{option}" for option in ("candidates=10", "rounds=1", "places=64", "images=1")]


RESIDUAL = """
    model (float[N, 16, 6, 6] image) => (float[N, 16, 6, 6] sum) {
        wide = Conv <kernel_shape = FIRST> (image, first)
        gate = Sigmoid (wide)
        silu = Mul (wide, gate)
        narrow = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (silu, second)
        sum = Add (narrow, image)
    }
"""


def residual(kernel="[1, 1]", first=None):
    first = normal(32, 16, 1, 1) if first is None else first
    return parse(RESIDUAL.replace("FIRST", kernel), first=first, second=normal(16, 32, 3, 3) / 10)


def test_a_layer_reads_codes_and_who_else_reads_the_value_the_original():
    result = w8a8(residual(), normal(8, 16, 6, 6))
    assert activations(result).keys() == {"image", "silu"}
    by_output = producers(result.model)
    assert "image" in by_output["sum"].input, "nothing computed the image: it is no skip"
    convolution = by_output["wide"]
    assert by_output[convolution.input[0]].op_type == "DequantizeLinear"
    assert by_output[convolution.input[1]].op_type == "DequantizeLinear"


FUNCTIONS = {
    "SiLU": ("gate = Sigmoid (wide)\n bent = Mul (wide, gate)", 17),
    "HardSwish": ("bent = HardSwish (wide)", 17),
    "GELU": ("bent = Gelu (wide)", 20),
    "Relu": ("bent = Relu (wide)", 17),
}


@pytest.mark.parametrize(("function", "opset"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_nothing_stands_between_a_conv_and_its_activation_function_on_tensorrt(function, opset):
    proto = parse(
        f"""
        model (float[N, 16, 6, 6] image) => (float[N, 16, 6, 6] y) {{
            wide = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, first)
            {function}
            y = Conv <kernel_shape = [1, 1]> (bent, second)
        }}
        """,
        opset,
        first=normal(32, 16, 3, 3) / 10,
        second=normal(16, 32, 1, 1),
    )
    result = w8a8(proto, normal(8, 16, 6, 6))
    assert activations(result).keys() == {"image", "bent"}
    readers = {node.op_type for node in result.model.graph.node if "wide" in node.input}
    assert readers
    assert "QuantizeLinear" not in readers


def test_on_onnx_runtime_only_an_integer_convolution_writes_codes_into_its_silu():
    assert "wide" not in activations(w8a8(residual(), normal(8, 16, 6, 6), "onnxruntime"))
    large = w8a8(residual("[3, 3], pads = [1, 1, 1, 1]", normal(32, 16, 3, 3)), normal(8, 16, 6, 6), "onnxruntime")
    assert "wide" in activations(large), "its integer convolution writes nothing else"


def test_onnx_runtime_has_integer_convolutions_only_between_codes():
    result = w8a8(residual(), normal(8, 16, 6, 6), "onnxruntime", "quantize_activations.exclude=['none']")
    assert activations(result).keys() == {"silu", "narrow"}, "the 1x1 has too little work for integers"
    assert activations(result)["narrow"].consumers is None
    assert producers(result.model)["sum"].input[0] != "narrow"


@pytest.mark.parametrize(("features", "quantized"), [(32, True), (31, False)])
def test_onnx_runtime_gets_integer_linear_layers_only_where_they_have_weights_enough(features, quantized):
    proto = parse(
        f"""
        model (float[N, 64] x) => (float[N, {features}] y, float[N, 64] z) {{
            y = Gemm (x, weight)
            z = Gemm (x, large)
        }}
        """,
        weight=normal(64, features),
        large=normal(64, 64),
    )
    by_output = producers(w8a8(proto, normal(8, 64), "onnxruntime").model)
    assert (by_output["y"].input[0] == by_output["z"].input[0]) is quantized
    assert (by_output["y"].input[0] == "x") is not quantized


def block(branch="branch = Conv <kernel_shape = [1, 1]> (bent, project)", project=(16, 32, 1, 1), also_read=False):
    """An inverted residual; a layer reads its skip too."""
    return parse(
        f"""
        model (float[N, 3, 6, 6] image) => (float[N, 16, 6, 6] y{", float[N, 16, 6, 6] z" if also_read else ""}) {{
            stream = Conv <kernel_shape = [1, 1]> (image, stem)
            wide = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (stream, expand)
            bent = Relu (wide)
            {branch}
            sum = Add (branch, stream)
            y = Conv <kernel_shape = [1, 1]> (sum, last)
            {"z = Sigmoid (branch)" if also_read else ""}
        }}
        """,
        stem=normal(16, 3, 1, 1),
        expand=normal(32, 16, 3, 3),
        project=normal(*project),
        narrowing=normal(16, 32, 1, 1),
        last=normal(16, 16, 1, 1),
    )


def read_by_add(proto, target="tensorrt", *overrides):
    """The name of the skip as the Add reads it, and of the same value as a layer reads it."""
    by_output = producers(w8a8(proto, normal(8, 3, 6, 6), target, *overrides).model)
    return by_output["sum"].input[1], by_output["wide"].input[0]


def test_the_add_behind_a_convolution_reads_the_codes_that_a_layer_reads_of_its_skip_on_tensorrt():
    skip, read = read_by_add(block())
    assert skip == read != "stream"


def test_on_onnx_runtime_no_add_reads_codes():
    skip, read = read_by_add(block(), "onnxruntime")
    assert skip == "stream" != read


BRANCHES = {
    "a depthwise convolution": (
        """
        narrow = Conv <kernel_shape = [1, 1]> (bent, narrowing)
        branch = Conv <kernel_shape = [1, 1], group = 16> (narrow, project)
        """,
        (16, 1, 1, 1),
    ),
    "an activation function": (
        "narrow = Conv <kernel_shape = [1, 1]> (bent, project)\n branch = Sigmoid (narrow)",
        (16, 32, 1, 1),
    ),
    "a linear layer": (
        """
        narrow = Conv <kernel_shape = [1, 1]> (bent, narrowing)
        branch = MatMul (narrow, project)
        """,
        (6, 6),
    ),
}


@pytest.mark.parametrize(("branch", "project"), BRANCHES.values(), ids=BRANCHES)
def test_the_skip_stays_in_float_where_no_convolution_is_fused_with_the_add(branch, project):
    skip, read = read_by_add(block(branch, project))
    assert skip == "stream" != read


def test_the_skip_stays_in_float_where_what_the_convolution_writes_is_read_elsewhere_too():
    skip, read = read_by_add(block(also_read=True))
    assert skip == "stream" != read


def test_the_skip_stays_in_float_where_the_convolution_does():
    skip, read = read_by_add(block(), "tensorrt", "quantize_conv_weights.exclude=['Conv_3']")
    assert skip == "stream" != read


def test_the_skip_of_attention_stays_in_float_even_behind_a_convolution():
    names = ("wide_weight", "k_weight", "v_weight", "project", "last")
    proto = parse(
        """
        model (float[N, 3, 6, 6] image) => (float[N, 16, 6, 6] y) {
            stream = Conv <kernel_shape = [1, 1]> (image, stem)
            wide = Conv <kernel_shape = [1, 1]> (stream, wide_weight)
            k_map = Conv <kernel_shape = [1, 1]> (stream, k_weight)
            v_map = Conv <kernel_shape = [1, 1]> (stream, v_weight)
            q_rows = Reshape (wide, to_tokens)
            q = Transpose <perm = [0, 2, 1]> (q_rows)
            k = Reshape (k_map, to_tokens)
            v_rows = Reshape (v_map, to_tokens)
            v = Transpose <perm = [0, 2, 1]> (v_rows)
            scores = MatMul (q, k)
            probs = Softmax <axis = -1> (scores)
            mixed = MatMul (probs, v)
            rows = Transpose <perm = [0, 2, 1]> (mixed)
            map = Reshape (rows, to_map)
            branch = Conv <kernel_shape = [1, 1]> (map, project)
            sum = Add (branch, stream)
            y = Conv <kernel_shape = [1, 1]> (sum, last)
        }
        """,
        stem=normal(16, 3, 1, 1),
        **{name: normal(16, 16, 1, 1) for name in names},
        to_tokens=np.array([0, 16, 36], np.int64),
        to_map=np.array([0, 16, 6, 6], np.int64),
    )
    skip, read = read_by_add(proto)
    assert skip == "stream" != read


def tokens():
    return parse(
        """
        model (float[N, 6, 64] x) => (float[N, 6, 64] y, float[N, 6, 64] z) {
            normed = LayerNormalization <axis = -1> (x, scale, bias)
            scores = MatMul (normed, first)
            logits = MatMul (normed, second)
            probs = Softmax <axis = -1> (scores)
            gate = Sigmoid (logits)
            y = MatMul (probs, third)
            z = MatMul (gate, fourth)
        }
        """,
        scale=1 + normal(64) / 10,
        bias=normal(64),
        **{name: normal(64, 64) for name in ("first", "second", "third", "fourth")},
    )


def sources(result, *op_types):
    """What nodes of these types read first, by the name of that tensor."""
    by_output = producers(result.model)
    read = [node.input[0] for node in result.model.graph.node if node.op_type in op_types]
    return {name: by_output[name].op_type for name in read if name in by_output}


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_norms_softmax_and_sigmoid_read_floats(target):
    result = w8a8(tokens(), normal(8, 6, 64), target)
    assert "DequantizeLinear" in sources(result, "MatMul", "Gemm").values()
    assert "DequantizeLinear" not in sources(result, "LayerNormalization", "Softmax", "Sigmoid").values()


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_value_that_two_layers_read_goes_through_one_pair(target):
    result = w8a8(tokens(), normal(8, 6, 64), target, "absorb_shift.min_gain=99")
    assert list(sources(result, "MatMul", "Gemm").values()) == ["DequantizeLinear"] * 3, "for four layers"
    assert sum(node.op_type == "QuantizeLinear" for node in result.model.graph.node) == 3


def test_what_a_split_takes_apart_gets_a_scale_for_each_part():
    parts = [normal(16, 16), 9 * normal(16, 16), normal(16, 16) / 9]
    proto = parse(
        """
        model (float[N, 6, 16] x) => (float[N, 6, 16] y) {
            qkv = MatMul (x, weight)
            q, k, v = Split <axis = 2, num_outputs = 3> (qkv)
            kt = Transpose <perm = [0, 2, 1]> (k)
            scores = MatMul (q, kt)
            probs = Softmax <axis = -1> (scores)
            y = MatMul (probs, v)
        }
        """,
        18,
        weight=np.concatenate(parts, axis=1),
    )
    scales = {name: float(entry.quantizer.scale) for name, entry in activations(w8a8(proto, normal(8, 6, 16))).items()}
    assert scales["kt"] > 3 * scales["q"] > 9 * scales["v"]


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


def test_full_quantization_takes_in_what_softmax_and_norms_read():
    proto, data = attention(), images(8)
    partial, full = (
        activations(rewrite(proto, recipe=recipe, calibration=data, target="reference", overrides=BRIEF, min_sqnr=-99))
        for recipe in ("q-hyvit", "q-hyvit-full")
    )
    assert full.keys() - partial.keys() == {"scores", "logits"}
    assert len(full["scores"].consumers) == 1


def test_what_the_network_is_fed_may_have_more_bits_than_the_rest():
    bits = ("quantize_activations.bits=4", "quantize_activations.input_bits=8")
    chosen = activations(w8a8(attention(), images(), "tensorrt", *bits))
    assert chosen.pop("image").quantizer.bits == 8
    assert {entry.quantizer.bits for entry in chosen.values()} == {4}
