"""What isn't quantized computes in float16, what float16 can't hold in float32, and the casts are in the file."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnxquant.passes.calibrate import Calibrate
from onnxquant.passes.classify_blocks import ClassifyBlocks
from onnxquant.passes.convert_to_float16 import ConvertToFloat16
from onnxquant.passes.quantize_conv_weights import QuantizeConvWeights
from onnxquant.passes.quantize_softmax_log2 import QuantizeSoftmaxLog2

from onnxquant.deploy.build import build_engine
from onnxquant.errors import OnnxquantError
from onnxquant.graph.float16 import rounded
from onnxquant.graph.model import load
from onnxquant.measure.metrics import sqnr_db
from onnxquant.pass_manager import PassContext, PassManager
from onnxquant.pipeline import open_samples
from tests.fixtures import load_fixture
from tests.graphs import attention, images, initializers, op_types, parse, run

DEMO = Path(__file__).parents[2] / "models" / "demo"

OVERFLOW = "g (float[1, 4] x) => (float[1, 4] y) { big = Mul (x, up) \n y = Mul (big, down) }"
"""1000 times the input in the middle, and the input again at the end."""
SCALES = {"up": np.float32(1000), "down": np.float32(0.001)}

HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT

FAMILIES = [
    (name, exporter)
    for name in (
        *("mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1", "efficientformerv2_s0", "levit_128s"),
        *("edgenext_xx_small", "fastvit_t8", "tiny_vit_5m", "coat_tiny", "mobileone_s0", "repvit_m0_9"),
        *("swin_t", "vit_s", "deit_t", "mobile_former_26m"),
    )
    for exporter in ("torchscript", "dynamo")
]


def exported(graph):
    """The graph, checked, with the type of every tensor."""
    proto = gs.export_onnx(graph)
    onnx.checker.check_model(proto, full_check=True)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


def converted(proto, calibration=None, **options):
    return exported(ConvertToFloat16(**options)(gs.import_onnx(proto), calibration))


def quantized(proto, calibration=None, to_float16=True):
    graph = gs.import_onnx(proto)
    for step in (QuantizeConvWeights(), QuantizeSoftmaxLog2(), *([ConvertToFloat16()] if to_float16 else [])):
        step(graph, calibration, "tensorrt")
    return exported(graph)


def types(proto):
    """ONNX's number of each computed tensor's type, by name."""
    values = [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def types_by_op(proto):
    """The type of the last such node's output, by operator."""
    return {node.op_type: types(proto)[node.output[0]] for node in proto.graph.node}


def build(proto):
    """TensorRT-RTX's plan."""
    return build_engine(proto, runtime="tensorrt-rtx", compute_capabilities=["8.6"]).plan


def notes(proto):
    model = load(proto)
    return ConvertToFloat16().run(model.graph, PassContext(model)).notes


def test_inputs_and_outputs_stay_float32_and_what_is_between_computes_in_float16():
    result = converted(attention(), images(32))
    assert types(result)["image"] == types(result)["probabilities"] == SINGLE
    for op in ("Conv", "MatMul", "Gemm", "Relu", "Reshape"):
        assert types_by_op(result)[op] == HALF
    assert {values.dtype.name for values in initializers(result).values()} == {"float16", "int64"}


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("as_run", [lambda proto: proto, rounded], ids=["by ONNX Runtime", "with every value rounded"])
def test_the_output_is_that_of_float32_to_float16s_precision(as_run, opset):
    x = images(32)
    assert sqnr_db(run(attention(opset), image=x)[0], run(as_run(converted(attention(opset), x)), image=x)[0]) > 50


def test_operators_that_may_overflow_inside_stay_in_float32_unless_told_otherwise():
    result = types_by_op(converted(attention(), images(32)))
    assert result["Softmax"] == result["GlobalAveragePool"] == SINGLE
    assert types(converted(attention(), images(32), block_ops=()))["probs"] == HALF


def test_what_came_near_float16s_end_in_calibration_stays_in_float32():
    x = np.full((1, 4), 100, np.float32)
    result = converted(parse(OVERFLOW, **SCALES), {"x": x})
    assert HALF not in types(result).values()
    assert np.isfinite(run(rounded(result), x=x)[0]).all()


def test_values_that_stay_far_from_it_do_not():
    result = converted(parse(OVERFLOW, **SCALES), {"x": np.ones((1, 4), np.float32)})
    assert types(result)["big"] == HALF


def test_reshaping_a_large_value_leaves_it_large():
    text = "g (float[1, 4] x) => (float[2, 2] y) { a = Mul (x, up) \n b = Reshape (a, to) \n y = Mul (b, down) }"
    result = converted(parse(text, **SCALES, to=np.array([2, 2])), {"x": np.full((1, 4), 100, np.float32)})
    assert HALF not in types(result).values()


def test_without_calibration_data_it_may_overflow_and_the_notes_say_so():
    proto, x = parse(OVERFLOW, **SCALES), np.full((1, 4), 100, np.float32)
    assert "may overflow (give --calib" in notes(proto)[-1]
    assert np.isinf(run(rounded(converted(proto)), x=x)[0]).all()


def test_onnx_runtime_alone_hides_the_overflow_on_a_cpu():
    """Why `rounded` is there: once this fails, it is no longer needed."""
    proto = converted(parse(OVERFLOW, **SCALES))
    assert np.isfinite(run(proto, x=np.full((1, 4), 100, np.float32))[0]).all()


@pytest.mark.parametrize(
    ("constant", "kind"), [(1e5, SINGLE), (1e-6, SINGLE), (0.0, HALF), (np.inf, HALF), (7.0, HALF)]
)
def test_a_constant_that_float16_cannot_hold_keeps_its_node_in_float32(constant, kind):
    proto = parse(
        "g (float[4] x) => (float[4] y) { a = Relu (x) \n b = Max (a, c) \n y = Min (b, one) }",
        c=np.float32(constant),
        one=np.float32(1),
    )
    assert types(converted(proto))["b"] == kind


def test_an_infinite_attention_mask_is_no_overflow():
    proto = parse(
        "g (float[1, 4] x) => (float[1, 4] y) { a = Add (x, mask) \n y = Softmax (a) }",
        mask=np.array([0, 0, -np.inf, 0], np.float32),
    )
    x = np.ones((1, 4), np.float32)
    result = converted(proto, x)
    assert types(result)["a"] == HALF
    np.testing.assert_allclose(run(rounded(result), x=x)[0], run(proto, x=x)[0], rtol=2e-3)


def test_small_values_among_a_weights_others_do_no_harm():
    weight = np.array([[1, 1e-9], [0.5, 1]], np.float32)
    assert (
        types(converted(parse("g (float[2] x) => (float[2] y) { a = MatMul (x, w) \n y = Relu (a) }", w=weight)))["a"]
        == HALF
    )


def test_a_value_is_cast_once_however_many_nodes_read_it():
    proto = parse(
        """g (float[4] x) => (float[4] y) {
            a = Add (x, one)
            b = Mul (x, one)
            c = Mul (a, b)
            d = Exp (c)
            e = Sqrt (c)
            f = Mul (d, e)
            g = Add (d, one)
            h = Pow (e, one)
            i = Add (f, g)
            y = Add (i, h)
        }""",
        one=np.ones(4, np.float32),
    )
    result, x = converted(proto), np.linspace(0, 1, 4, dtype=np.float32)
    assert op_types(result).count("Cast") == 6  # x, c, d, e, h and y
    assert sqnr_db(run(proto, x=x)[0], run(rounded(result), x=x)[0]) > 55


def test_an_output_that_other_nodes_read_stays_float32_for_the_caller():
    proto = parse(
        "g (float[4] x) => (float[4] y, float[4] z, float[4] e) { y = Add (x, x) \n z = Mul (y, y) \n e = Exp (y) }"
    )
    result, x = converted(proto), np.arange(4, dtype=np.float32)
    assert [output.type.tensor_type.elem_type for output in result.graph.output] == [SINGLE] * 3
    for value, expected in zip(run(result, x=x), run(proto, x=x), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-3)


def test_inputs_that_are_float32_in_every_form_of_an_operator_stay_float32():
    proto = parse(
        "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) { a = Relu (x) \n b = Resize (a, , s) \n y = Relu (b) }",
        s=np.array([1, 1, 2, 2], np.float32),
    )
    result = converted(proto)
    assert types(result)["b"] == HALF
    assert initializers(result)["s"].dtype == np.float32
    assert run(result, x=np.ones((1, 1, 2, 2), np.float32))[0].shape == (1, 1, 4, 4)


def test_shapes_and_their_arithmetic_are_left_alone():
    proto = parse(
        """g (float[N, 4] x) => (float[M, K] y) {
            a = Relu (x)
            s = Shape (a)
            f = Cast <to = 1> (s)
            h = Mul (f, scale)
            r = Floor (h)
            t = Cast <to = 7> (r)
            y = Reshape (a, t)
        }""",
        scale=np.array([2, 0.5], np.float32),
    )
    result, x = converted(proto), np.ones((3000, 4), np.float32)  # float16 holds no odd number above 2048
    assert op_types(result).count("Cast") == 4  # the two there were, x and y
    assert run(result, x=x)[0].shape == (6000, 2)


def test_what_a_subgraph_reads_stays_float32():
    proto = parse(
        """g (float[4] x, bool c) => (float[4] y) {
            h = Mul (x, two)
            k = If (c) <
                then_branch = yes () => (float[4] t) { t = Add (h, two) },
                else_branch = no () => (float[4] e) { e = Sub (h, two) }
            >
            m = Mul (k, two)
            y = Mul (h, m)
        }""",
        two=np.float32(2),
    )
    result, x = converted(proto), np.arange(4, dtype=np.float32)
    assert types(result)["h"] == SINGLE
    assert types(result)["m"] == HALF
    for c in (True, False):
        np.testing.assert_allclose(run(result, x=x, c=np.array(c))[0], run(proto, x=x, c=np.array(c))[0], rtol=2e-3)


def test_an_operator_outside_the_standard_and_what_it_leads_to_stay_float32():
    text = """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[4] x) => (float[4] y) {
        a = Relu (x)
        b = com.microsoft.QuickGelu (a)
        c = Add (b, a)
        y = Relu (c)
    }"""
    proto, x = onnx.parser.parse_model(text), np.arange(4, dtype=np.float32)
    result = converted(proto)
    assert types(result)["a"] == HALF
    np.testing.assert_allclose(run(result, x=x)[0], run(proto, x=x)[0], rtol=2e-3)


def test_a_model_that_holds_float16_keeps_its_types():
    proto = parse(
        """g (float[4] x) => (float[4] y) {
            a = Cast <to = 10> (x)
            b = Relu (a)
            c = Cast <to = 1> (b)
            y = Relu (c)
        }""",
        19,
    )
    assert op_types(converted(proto)) == op_types(proto)
    assert notes(proto) == ("the model holds float16 already: its types stay as they are",)


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
def test_quantized_weights_keep_their_codes_and_scales_and_are_cast_behind_them(opset):
    result, x = quantized(attention(opset), images(32)), images(8)
    plain = quantized(attention(opset), images(32), to_float16=False)
    for name, values in initializers(plain).items():
        if "_quantized" in name or "_scale" in name:
            np.testing.assert_array_equal(initializers(result)[name], values)
            assert initializers(result)[name].dtype == values.dtype
    assert types_by_op(result)["DequantizeLinear"] == SINGLE
    assert types_by_op(result)["Conv"] == HALF
    assert sqnr_db(run(plain, image=x)[0], run(rounded(result), image=x)[0]) > 45


def test_between_softmax_and_the_log2_codes_nothing_is_cast():
    nodes = {output: node for node in quantized(attention(), images(32)).graph.node for output in node.output}
    quantize = next(node for node in nodes.values() if node.op_type == "Log2QuantizeLinear")
    dequantize = next(node for node in nodes.values() if node.op_type == "Log2DequantizeLinear")
    assert nodes[quantize.input[0]].op_type == "Softmax"
    cast = next(node for node in nodes.values() if dequantize.output[0] in node.input)
    assert cast.op_type == "Cast"
    mixed = next(node for node in nodes.values() if cast.output[0] in node.input)
    assert mixed.op_type == "MatMul"


def test_the_notes_count_the_nodes_and_name_the_largest_value():
    model = load(parse(OVERFLOW, **SCALES))
    model.graph.nodes[0].name = "scale_up"
    data = open_samples(model, {"x": np.full((1, 4), 100, np.float32)})
    context = PassContext(model, calibration=data)
    runs = PassManager([ClassifyBlocks(), Calibrate(), ConvertToFloat16()]).run(context)
    assert runs[-1].result.notes == (
        "0 nodes in float16, 2 kept in float32 (2 Mul)",
        "2 of them for their values (largest 1e+05, at scale_up)",
    )


def test_a_recipe_that_does_not_calibrate_is_refused():
    with pytest.raises(OnnxquantError, match=r"convert_to_float16 needs observations.* add calibrate"):
        PassManager([ConvertToFloat16()])


def test_tensorrt_keeps_integer_weights_integer():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    rng = np.random.default_rng(0)
    proto = parse(
        "g (float[1, 256, 8, 8] x) => (float[1, 256, 6, 6] y) { a = Relu (x) \n y = Conv (a, w) }",
        w=rng.standard_normal((256, 256, 3, 3)).astype(np.float32),
    )
    sizes = [len(build(model)) for model in (proto, converted(proto), quantized(proto))]
    assert sizes[0] - sizes[1] > 0.8 * 2 * 256 * 256 * 9
    assert sizes[1] - sizes[2] > 0.6 * 256 * 256 * 9


@pytest.mark.slow
def test_tensorrt_takes_the_quantized_demo():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    model = load(DEMO / "mobilevit_xxs_digits.onnx")
    samples = open_samples(model, DEMO / "digits_train.npz")
    result, plain = (quantized(model.to_proto(), samples, to_float16=each) for each in (True, False))
    assert result.ByteSize() < 0.7 * plain.ByteSize()
    assert build(result)


def with_rounded_weights(proto):
    """float32 throughout, but for weights with float16's precision: random weights make some models chaotic."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and np.abs(values).max(initial=0) < 65504:
            rounded_values = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded_values, tensor.name))
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), FAMILIES)
def test_every_family_is_built_and_loses_little_more_than_its_weights_precision(name, exporter):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    proto = load_fixture(name, exporter)
    shape = [size.dim_value for size in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    result = converted(proto, x)
    reference, *others = (run(each, input=x)[0] for each in (proto, with_rounded_weights(proto), rounded(result)))
    weights_only, everything = (sqnr_db(reference, other) for other in others)
    assert everything > weights_only - 10
    assert build(result)
