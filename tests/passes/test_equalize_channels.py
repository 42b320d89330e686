"""Channels get equal ranges by scales in the weights around them, and nothing changes at the output."""

import numpy as np
import pytest
from onnxquant.passes import equalize_channels
from onnxquant.passes.equalize_channels import EqualizeChannels

from onnxquant import rewrite
from onnxquant.calibration.observers import MinMax
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from onnxquant.pipeline import canonicalise
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.targets import load_target
from tests.fixtures import FIXTURES, load_fixture
from tests.graphs import attention, group_norm, images, initializers, op_types, parse, run

SPREAD = np.array([100, 1, 0.1, 3], np.float32)
"""Channels with ranges far apart."""


def normal(*shape):
    return (
        np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    )  # the same in whatever order tests run


def equalized(proto, target="tensorrt", **options):
    """The model as the pass leaves it, the scales and what it said."""
    model = load(proto)
    context = PassContext(model, load_target(target))
    result = EqualizeChannels(**options).run(model.graph, context)
    return model.to_proto(), context.plan.channel_scales, result


def check_equal(result, proto, x):
    """Outputs within 1e-5 of the largest one."""
    for after, before in zip(run(result, x=x), run(proto, x=x), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def channel_ranges(proto, tensor, x):
    """Largest magnitude of each channel of a (N, C, H, W) activation."""
    exposed = type(proto)()
    exposed.CopyFrom(proto)
    exposed.graph.output.add(name=tensor)
    return np.abs(run(exposed, x=x)[-1]).max(axis=(0, 2, 3))


# Behind a norm.


def norm_and_readers(readers, outputs="float[N, 5, 6] y", **weights):
    return parse(
        f"""g (float[N, 5, 4] x) => ({outputs}) {{
            h = LayerNormalization <axis = -1> (x, gamma, beta)
            {readers}
        }}""",
        **{"gamma": normal(4) * SPREAD, "beta": normal(4), "w": normal(4, 6), **weights},
    )


def test_a_layer_norm_and_the_linear_behind_it():
    proto = norm_and_readers("y = MatMul (h, w)")
    result, scales, outcome = equalized(proto)
    assert list(scales) == ["h"]
    assert outcome.notes == ("1 folded into weights",)
    before, after = initializers(proto), initializers(result)
    np.testing.assert_allclose(after["gamma"], before["gamma"] / scales["h"], rtol=1e-6)
    np.testing.assert_allclose(after["w"], before["w"] * np.array(scales["h"])[:, None], rtol=1e-6)
    assert np.ptp(np.log(np.abs(after["gamma"]))) < np.ptp(np.log(np.abs(before["gamma"])))
    check_equal(result, proto, normal(3, 5, 4))


def test_every_linear_that_reads_the_norm_takes_the_same_scales():
    proto = norm_and_readers("a = MatMul (h, w)\n b = MatMul (h, v)\n y = Add (a, b)", v=normal(4, 6, 1)[..., 0])
    result, scales, _ = equalized(proto)
    assert list(scales) == ["h"]
    check_equal(result, proto, normal(3, 5, 4))


def test_a_norm_without_outliers_stays():
    proto = norm_and_readers(
        "y = MatMul (h, w)", gamma=np.array([2, 1, 1, 0.5], np.float32), beta=np.zeros(4, np.float32)
    )
    assert not equalized(proto)[1]


@pytest.mark.parametrize(
    ("readers", "outputs"),
    [
        ("y = MatMul (h, w)\n z = Add (h, c)", "float[N, 5, 6] y, float[N, 5, 4] z"),
        ("y = MatMul (h, w)", "float[N, 5, 6] y, float[N, 5, 4] h"),
        ("t = Transpose <perm = [0, 2, 1]> (h)\n y = MatMul (h, t)", "float[N, 5, 5] y"),
    ],
    ids=["a reader that isn't a layer", "the output of the graph", "a product of two activations"],
)  # fmt: skip
def test_a_norm_stays_where_somebody_reads_it_who_takes_no_scale(readers, outputs):
    proto = norm_and_readers(readers, outputs, **({"c": normal(4)} if "c)" in readers else {}))
    _, scales, outcome = equalized(proto)
    assert not scales
    assert not outcome.modified
    assert outcome.notes


def test_a_norm_that_a_subgraph_reads_stays():
    inner = "then_branch = t () => (float[N, 5, 4] u) { u = Identity (h) }"
    other = "else_branch = e () => (float[N, 5, 4] v) { v = Neg (h) }"
    proto = norm_and_readers(
        f"y = MatMul (h, w)\n z = If <{inner}, {other}> (always)",
        "float[N, 5, 6] y, float[N, 5, 4] z",
        always=np.array(True),
    )
    assert not equalized(proto)[1]


def test_norms_that_share_a_scale_with_others_get_their_own():
    """Exporters store equal tensors once."""
    proto = parse(
        """g (float[N, 5, 4] x) => (float[N, 5, 4] y) {
            h = LayerNormalization <axis = -1> (x, gamma, zero)
            a = MatMul (h, w)
            b = Add (a, zero)
            c = Add (b, x)
            y = LayerNormalization <axis = -1> (c, gamma, zero)
        }""",
        gamma=SPREAD,
        zero=np.zeros(4, np.float32),
        w=normal(4, 4),
    )
    result, scales, _ = equalized(proto)
    assert list(scales) == ["h"]
    np.testing.assert_array_equal(initializers(result)["gamma"], SPREAD)
    check_equal(result, proto, normal(3, 5, 4))


def test_the_scale_and_shift_behind_an_instance_norm():
    proto = group_norm(SPREAD)
    result, scales, _ = equalized(proto)
    assert list(scales) == ["h"]
    check_equal(result, proto, normal(2, 4, 6, 6))


# From layer to layer.


def two_layers(between, first="Conv", second="Conv <pads = [1, 1, 1, 1]>", **weights):
    """Layers of 4 channels between, of unequal ranges; `between` computes h from z."""
    weights = {
        "w": normal(5, 4, 3, 3),
        "b": normal(4),
        "v": normal(4, 3, 1, 1) * SPREAD[:, None, None, None],
        **weights,
    }
    return parse(
        f"""g (float[N, 3, 8, 8] x) => (float[N, M, H, W] y) {{
            z = {first} (x, v, b)
            {between}
            y = {second} (h, w)
        }}""",
        **weights,
    )


@pytest.mark.parametrize(
    "between",
    [
        "h = Relu (z)",
        "h = LeakyRelu <alpha = 0.1> (z)",
        "h = PRelu (z, slope)",
        "r = Relu (z)\n h = MaxPool <kernel_shape = [2, 2]> (r)",
        "h = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (z)",
        "h = Add (z, shift)",
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_function_that_scales_with_its_input_lets_scales_through(between, grouped):
    constants = {"slope": normal(4, 1, 1), "shift": 5 * normal(4, 1, 1)}
    used = {name: values for name, values in constants.items() if name in between}
    layer = {"second": "Conv <group = 2>", "w": normal(6, 2, 3, 3)} if grouped else {}
    proto = two_layers(between, **layer, **used)
    result, scales, _ = equalized(proto)
    assert list(scales) == ["h"]
    assert op_types(result) == op_types(proto)
    check_equal(result, proto, normal(2, 3, 8, 8))


@pytest.mark.parametrize(
    "between",
    [
        "s = Sigmoid (z)\n h = Mul (z, s)",
        "h = Sigmoid (z)",
        "h = HardSwish (z)",
        "h = Clip (z, low, high)",
        "r = Relu (z)\n h = Add (r, z)",
        "r = Relu (z)\n h = LRN <size = 3> (r)",
    ],
)
def test_no_other_function_does(between):
    bounds = {"low": np.float32(0), "high": np.float32(6)} if "Clip" in between else {}
    proto = two_layers(between, **bounds)
    result, scales, outcome = equalized(proto)
    assert not scales
    assert not outcome.modified
    assert all(np.array_equal(initializers(result)[name], values) for name, values in initializers(proto).items())


def test_what_others_read_on_the_way_stays():
    proto = parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 5, 6, 6] y, float[N, 4, 8, 8] other) {
            z = Conv (x, v)
            h = Relu (z)
            y = Conv (h, w)
            other = Tanh (z)
        }""",
        v=normal(4, 3, 1, 1) * SPREAD[:, None, None, None],
        w=normal(5, 4, 3, 3),
    )
    assert not equalized(proto)[1]


def test_transposed_convolutions_take_scales_on_both_sides():
    proto = two_layers(
        "h = Relu (z)",
        first="ConvTranspose <group = 3>",
        second="ConvTranspose <group = 2>",
        v=normal(3, 2, 2, 2),
        b=100 * normal(6) ** 3,
        w=normal(6, 4, 3, 3),
    )
    result, scales, _ = equalized(proto)
    assert list(scales) == ["h"]
    check_equal(result, proto, normal(2, 3, 8, 8))


@pytest.mark.parametrize("attributes", ["", "<transB = 1>"])
def test_two_linears_take_scales(attributes):
    shapes = [(3, 4), (4, 5)]
    v, w = (normal(*(shape[::-1] if attributes else shape)) for shape in shapes)
    proto = parse(
        f"""g (float[N, 3] x) => (float[N, 5] y) {{
            z = Gemm {attributes} (x, v, b)
            h = Relu (z)
            y = Gemm {attributes} (h, w, c)
        }}""",
        v=v,
        w=w,
        b=normal(4) * SPREAD,
        c=normal(5),
    )
    result, scales, _ = equalized(proto)
    assert list(scales) == ["h"]
    check_equal(result, proto, normal(6, 3))


def test_a_pool_over_what_a_linear_takes_for_channels_lets_no_scale_through():
    proto = parse(
        """g (float[N, 3, 8] x) => (float[N, 3, 5] y) {
            z = MatMul (x, v)
            h = MaxPool <kernel_shape = [3], pads = [1, 1]> (z)
            y = MatMul (h, w)
        }""",
        v=normal(8, 8),
        w=normal(8, 5),
    )
    assert not equalized(proto)[1]


def test_weights_that_the_scales_would_push_out_of_float16_stay():
    scaled = {"v": normal(4, 3, 1, 1) * 1e-4, "b": np.zeros(4, np.float32), "w": np.full((5, 4, 3, 3), 6e4, np.float32)}
    scaled["v"][0] = 100
    proto = parse(
        """g (float16[N, 3, 8, 8] x) => (float16[N, 5, 6, 6] y) {
            z = Conv (x, v, b)
            h = Relu (z)
            y = Conv (h, w)
        }""",
        19,
        **{name: values.astype(np.float16) for name, values in scaled.items()},
    )
    result, scales, _ = equalized(proto)
    assert not scales
    np.testing.assert_array_equal(initializers(result)["w"], initializers(proto)["w"])


# Into a depthwise convolution.

SILU = "s = Sigmoid (z)\n h = Mul (z, s)"


def depthwise(between=SILU):
    bounds = {"zero": np.float32(0), "six": np.float32(6)} if "Clip" in between else {}
    return two_layers(between, second="Conv <group = 4, pads = [1, 1, 1, 1]>", w=normal(4, 1, 3, 3), **bounds)


@pytest.mark.parametrize("between", [SILU, "h = HardSwish (z)", "h = Clip (z, zero, six)"])
def test_a_depthwise_conv_behind_any_function_reads_equal_channels(between):
    proto = depthwise(between)
    result, scales, outcome = equalized(proto)
    assert outcome.notes == ("1 multiplied before a depthwise Conv",)
    assert op_types(result) == [*op_types(proto)[:-1], "Mul", "Conv"]
    x = normal(2, 3, 8, 8)
    check_equal(result, proto, x)
    before, after = channel_ranges(proto, "h", x), channel_ranges(result, "h_equalized", x)
    np.testing.assert_allclose(after, before / scales["h"], rtol=1e-5)
    if between == SILU:
        assert after.max() / after.min() < 0.2 * before.max() / before.min()


def test_multiply_false_adds_no_node():
    assert not equalized(depthwise(), multiply=False)[1]


def test_a_target_that_leaves_depthwise_convs_in_float_gets_no_multiplication():
    assert not equalized(depthwise(), target="onnxruntime")[1]


def test_behind_a_relu_a_depthwise_conv_needs_no_multiplication():
    proto = depthwise("h = Relu (z)")
    result, _, _ = equalized(proto)
    assert op_types(result) == op_types(proto)
    x = normal(2, 3, 8, 8)
    check_equal(result, proto, x)
    assert np.ptp(np.log(channel_ranges(result, "h", x))) < np.ptp(np.log(channel_ranges(proto, "h", x)))


def test_whoever_else_reads_the_activation_keeps_it_as_it_was():
    proto = parse(
        f"""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {{
            z = Conv (x, v)
            {SILU}
            d = Conv <group = 4, pads = [1, 1, 1, 1]> (h, w)
            y = Add (d, h)
        }}""",
        v=normal(4, 3, 1, 1) * SPREAD[:, None, None, None],
        w=normal(4, 1, 3, 3),
    )
    result, scales, _ = equalized(proto)
    assert list(scales) == ["h"]
    add = next(node for node in result.graph.node if node.op_type == "Add")
    assert "h" in add.input
    check_equal(result, proto, normal(2, 3, 8, 8))


def test_what_two_layers_add_up_to_is_not_multiplied():
    proto = parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
            a = Conv (x, v)
            b = Conv (x, u)
            s = Sigmoid (b)
            h = Mul (a, s)
            y = Conv <group = 4> (h, w)
        }""",
        v=normal(4, 3, 1, 1) * SPREAD[:, None, None, None],
        u=normal(4, 3, 1, 1),
        w=normal(4, 1, 3, 3),
    )
    assert not equalized(proto)[1]


def test_quantized_output_comes_closer():
    """One range for all: symmetric int8 of the activation, by hand."""

    def error(proto, tensor, x):
        ranges = channel_ranges(proto, tensor, x)
        step = ranges.max() / 127
        exposed = type(proto)()
        exposed.CopyFrom(proto)
        del exposed.graph.output[:]
        exposed.graph.output.add(name=tensor)
        values = run(exposed, x=x)[0]
        noise = (np.rint(values / step) * step - values) ** 2
        return (noise / (ranges**2)[:, None, None]).mean()

    proto, x = depthwise(), normal(4, 3, 8, 8)
    assert error(equalized(proto)[0], "h_equalized", x) < 0.05 * error(proto, "h", x)


# In a recipe, and in a plan.

RECIPE = """
[[pass]]
name = "classify_blocks"
[[pass]]
name = "equalize_channels"
[[pass]]
name = "calibrate"
[[pass]]
name = "quantize_conv_weights"
"""


def hybrid():
    """A depthwise block behind a SiLU, so that a Mul is inserted, and a Relu, so that weights change."""
    return parse(
        f"""g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {{
            z = Conv (x, v)
            {SILU}
            d = Conv <group = 4> (h, w)
            r = Relu (d)
            y = Conv (r, u)
        }}""",
        v=normal(4, 3, 1, 1) * SPREAD[:, None, None, None],
        w=normal(4, 1, 3, 3),
        u=normal(4, 4, 1, 1),
    )


def test_a_saved_plan_gives_the_same_model_without_data(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    decided = rewrite(hybrid(), recipe=str(recipe), calibration=normal(8, 3, 8, 8), target="tensorrt")
    saved = tmp_path / "plan.json"
    saved.write_text(decided.plan.to_json())
    assert list(decided.plan.channel_scales) == ["h", "r"]
    again = rewrite(hybrid(), plan=QuantizationPlan.from_json(saved))
    assert again.model.SerializeToString(deterministic=True) == decided.model.SerializeToString(deterministic=True)


def test_ranges_and_quantizers_decided_before_it_are_refused():
    quantizer = UniformQuantizer.from_range(np.array(0.0), np.array(1.0), bits=8, symmetric=True)
    entry = PlanEntry(tensor="w", role="weight", quantizer=quantizer)
    model = load(hybrid())
    plans = [QuantizationPlan(entries=[entry]), QuantizationPlan(channel_scales={"h": [1.0] * 4})]
    for early in ({"observations": {("h", MinMax): MinMax()}}, *({"plan": plan} for plan in plans)):
        with pytest.raises(OnnxquantError, match=r"equalize_channels .* before calibrate"):
            EqualizeChannels().run(model.graph, PassContext(model, **early))


def test_attention_keeps_its_products():
    """Q, K and V are read by no weighted layer; the graph's own Relu leads into linears through a Reshape."""
    proto = attention()
    result, scales, _ = equalized(proto)
    assert not scales
    np.testing.assert_array_equal(run(result, image=images())[0], run(proto, image=images())[0])


FAMILIES = [
    ("mobilevit_xxs", "torchscript"),
    ("mobilevitv2_050", "dynamo"),
    ("efficientformer_l1", "torchscript"),
    ("efficientformerv2_s0", "dynamo"),
    ("mobile_former_26m", "torchscript"),
    ("repvit_m0_9", "torchscript"),
    ("swin_t", "dynamo"),
    ("deit_t", "torchscript"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), FAMILIES)
def test_models_of_the_zoo_compute_the_same(name, exporter, monkeypatch):
    monkeypatch.setattr(equalize_channels, "LEAST_SHARED", 1.0)  # the fixtures' norms have no outliers
    assert (name, exporter) in FIXTURES
    model = load(load_fixture(name, exporter))
    canonicalise(model)
    proto, context = model.to_proto(), PassContext(model, load_target("tensorrt"))
    EqualizeChannels().run(model.graph, context)
    assert context.plan.channel_scales
    feed = proto.graph.input[0]
    x = normal(*(dim.dim_value or 1 for dim in feed.type.tensor_type.shape.dim))
    before, after = (run(each, **{feed.name: x})[0] for each in (proto, model.to_proto()))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())
