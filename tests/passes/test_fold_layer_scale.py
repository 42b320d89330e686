"""What scales or shifts the channels of a layer disappears into it, and nothing changes at the output."""

import numpy as np
import pytest
from onnxquant.passes.classify_blocks import classify
from onnxquant.passes.fold_layer_scale import FoldLayerScale

from onnxquant.graph.model import check, load
from onnxquant.pass_manager import PassContext
from onnxquant.pipeline import canonicalise
from tests.fixtures import load_fixture, one_of_each_family
from tests.graphs import initializers, op_types, parse, run


def normal(*shape):
    return (
        np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    )  # the same in whatever order tests run


def folded(proto):
    model = load(proto)
    result = FoldLayerScale().run(model.graph, PassContext(model))
    return check(model.to_proto(), "model"), result


def assert_same(result, proto, x):
    np.testing.assert_allclose(run(result, x=x)[0], run(proto, x=x)[0], rtol=1e-4, atol=1e-5)


def behind_conv(line, outputs="", **weights):
    weights = {"w": normal(4, 3, 1, 1), "b": normal(4), **weights}
    return parse(
        f"g (float[N, 3, 5, 5] x) => (float[N, 4, 5, 5] y{outputs}) {{ h = Conv (x, w, b)\n {line} }}", **weights
    )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (4, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("line", ["y = Mul (h, c)", "y = Mul (c, h)", "y = Div (h, c)", "y = Add (c, h)"])
def test_one_number_or_one_a_channel_is_folded_into_a_conv(shape, line):
    proto = behind_conv(line, c=normal(*shape))
    result, outcome = folded(proto)
    assert op_types(result) == ["Conv"]
    assert outcome.modified
    assert_same(result, proto, normal(2, 3, 5, 5))


@pytest.mark.parametrize("shape", [(5,), (5, 5), (1, 1, 5), (4, 5, 5), (1, 1, 1, 1, 1)])
def test_another_shape_stays(shape):
    line = "z = Mul (h, c)\n y = Reshape (z, shape)"
    proto = behind_conv(line, c=normal(*shape), shape=np.array([-1, 4, 5, 5]))
    result, outcome = folded(proto)
    assert "Mul" in op_types(result)
    assert not outcome.modified


@pytest.mark.parametrize("line", ["y = Div (c, h)", "y = Sub (c, h)", "y = Pow (h, c)"])
def test_a_constant_on_the_wrong_side_stays(line):
    proto = behind_conv(line, c=np.float32(2))
    assert len(op_types(folded(proto)[0])) == 2


@pytest.mark.parametrize(
    ("layer", "weight", "bias"),
    [
        ("Conv <pads = [1, 1, 1, 1]>", (6, 4, 3, 3), True),
        ("Conv <group = 4>", (8, 1, 3, 3), False),
        ("ConvTranspose", (4, 6, 3, 3), True),
        ("ConvTranspose <group = 2>", (4, 3, 3, 3), False),
        ("ConvTranspose <group = 4>", (4, 1, 3, 3), True),
    ],
)
@pytest.mark.parametrize("line", ["y = Mul (h, c)", "s = Sub (h, c)\n y = Mul (s, c)"])
def test_every_kind_of_convolution_takes_it(layer, weight, bias, line):
    groups = 4 if "4" in layer else 2 if "group = 2" in layer else 1
    channels = weight[0] if layer.startswith("Conv ") else weight[1] * groups
    proto = parse(
        f"""g (float[N, 4, 8, 8] x) => (float[N, {channels}, H, W] y) {{
            h = {layer} ({"x, w, b" if bias else "x, w"})
            {line}
        }}""",
        w=normal(*weight),
        c=normal(channels, 1, 1),
        **({"b": normal(channels)} if bias else {}),
    )
    result, _ = folded(proto)
    assert op_types(result) == [layer.split()[0]]
    assert_same(result, proto, normal(2, 4, 8, 8))


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<beta = 0.5>", "<alpha = 2.0, beta = 0.5>"])
@pytest.mark.parametrize("bias", [None, (), (5,), (1, 5)])
@pytest.mark.parametrize("line", ["y = Mul (h, c)", "s = Add (h, c)\n y = Mul (s, c)"])
def test_a_gemm_takes_it(attributes, bias, line):
    proto = parse(
        f"""g (float[N, 5] x) => (float[N, 5] y) {{
            h = Gemm {attributes} ({"x, w" if bias is None else "x, w, b"})
            {line}
        }}""",
        w=normal(5, 5),
        c=normal(5),
        **({} if bias is None else {"b": normal(*bias)}),
    )
    result, _ = folded(proto)
    assert op_types(result) == ["Gemm"]
    assert_same(result, proto, normal(3, 5))


def of_tokens(body, **weights):
    return parse(f"g (float[N, 6, 4] x) => (float[N, 6, 5] y) {{ {body} }}", w=normal(4, 5), **weights)


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (1, 1, 5)])
def test_a_matmul_takes_a_scale(shape):
    proto = of_tokens("h = MatMul (x, w)\n y = Mul (h, c)", c=normal(*shape))
    result, _ = folded(proto)
    assert op_types(result) == ["MatMul"]
    assert_same(result, proto, normal(2, 6, 4))


@pytest.mark.parametrize("shape", [(6, 1), (6, 5), (1, 6, 5)])
def test_a_scale_for_each_token_stays(shape):
    proto = of_tokens("h = MatMul (x, w)\n y = Mul (h, c)", c=normal(*shape))
    assert op_types(folded(proto)[0]) == ["MatMul", "Mul"]


@pytest.mark.parametrize("bias", [(), (5,), (1, 6, 5)])
def test_the_bias_behind_a_matmul_is_scaled_with_it(bias):
    proto = of_tokens(
        "m = MatMul (x, w)\n h = Add (b, m)\n s = Mul (h, c)\n y = Add (s, d)",
        b=normal(*bias),
        c=normal(5),
        d=normal(1, 5),
    )
    result, outcome = folded(proto)
    assert op_types(result) == ["MatMul", "Add"]
    assert outcome.notes == ("1 scales and 1 shifts folded",)
    assert_same(result, proto, normal(2, 6, 4))


def test_the_bias_behind_a_matmul_stays_its_bias():
    proto = of_tokens("m = MatMul (x, w)\n y = Add (m, b)", b=normal(5))
    result, outcome = folded(proto)
    assert op_types(result) == ["MatMul", "Add"]
    assert not outcome.modified


def test_a_product_of_two_activations_stays():
    proto = parse(
        "g (float[N, 6, 6] x) => (float[N, 6, 6] y) { h = MatMul (x, x)\n y = Mul (h, c) }", c=np.float32(0.125)
    )
    assert op_types(folded(proto)[0]) == ["MatMul", "Mul"]


def test_a_scale_stays_where_the_layer_has_another_reader():
    proto = behind_conv("z = Mul (h, c)\n y = Add (z, h)", c=normal(4, 1, 1))
    assert op_types(folded(proto)[0]) == ["Conv", "Mul", "Add"]


def test_a_scale_stays_where_the_layer_writes_an_output():
    proto = behind_conv("y = Mul (h, c)", outputs=", float[N, 4, 5, 5] h", c=normal(4, 1, 1))
    assert op_types(folded(proto)[0]) == ["Conv", "Mul"]


def test_a_scale_stays_where_a_function_comes_between():
    proto = behind_conv("r = Relu (h)\n y = Mul (r, c)", c=normal(4, 1, 1))
    assert op_types(folded(proto)[0]) == ["Conv", "Relu", "Mul"]


def test_a_bias_that_others_read_keeps_its_values():
    proto = of_tokens(
        "m = MatMul (x, w)\n h = Add (m, b)\n s = Mul (h, c)\n y = Add (s, b)", b=normal(1, 6, 5), c=normal(5)
    )
    result, _ = folded(proto)
    assert op_types(result) == ["MatMul", "Add", "Add"]
    np.testing.assert_array_equal(initializers(result)["b"], normal(1, 6, 5))
    assert_same(result, proto, normal(2, 6, 4))


@pytest.mark.parametrize(("scale", "expected"), [(0.1, ["Conv"]), (1e-6, ["Conv", "Mul"]), (6e4, ["Conv", "Mul"])])
def test_float16_weights_take_a_scale_that_they_can_hold(scale, expected):
    proto = parse(
        "g (float16[N, 3, 5, 5] x) => (float16[N, 4, 5, 5] y) { h = Conv (x, w)\n y = Mul (h, c) }",
        19,
        w=(4 * normal(4, 3, 1, 1)).astype(np.float16),
        c=np.full((4, 1, 1), scale, np.float16),
    )
    assert op_types(folded(proto)[0]) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), one_of_each_family())
def test_the_zoo_computes_the_same_and_keeps_its_blocks(name, exporter):
    model = load(load_fixture(name, exporter))
    canonicalise(model)
    before, blocks = model.to_proto(), kinds(model)
    FoldLayerScale().run(model.graph, PassContext(model))
    after = check(model.to_proto(), name)
    assert kinds(model).items() <= blocks.items()
    shape = [size.dim_value or 1 for size in before.graph.input[0].type.tensor_type.shape.dim]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected, found = (run(proto, **{before.graph.input[0].name: image})[0] for proto in (before, after))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def kinds(model):
    """Kind and scope of the block of every node."""
    blocks = classify(model.graph, model).blocks
    return {node.name: (block.kind, block.scope) for block in blocks for node in block.nodes}
