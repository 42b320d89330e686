"""Linear layers become Gemm on the rows of one matrix, and nothing changes at the output."""

import numpy as np
import pytest
from onnxquant.passes.linear_to_gemm import LinearToGemm
from onnxquant.passes.merge_layout import MergeLayout

from onnxquant.graph.model import check, load
from onnxquant.pass_manager import PassContext
from onnxquant.pipeline import canonicalise
from onnxquant.targets import load_target
from tests.fixtures import FIXTURES, first_of_families, load_fixture
from tests.graphs import initializers, op_types, parse, run

FAMILIES = [entry for entry in FIXTURES if entry[0] in first_of_families()]


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def converted(proto, target="onnxruntime"):
    model = load(proto)
    result = LinearToGemm().run(model.graph, PassContext(model, load_target(target)))
    return check(model.to_proto(), "model"), result


def assert_same(result, proto, *shape, batches=(1, 2, 3)):
    for batch in batches:
        x = normal(batch, *shape)
        for a, b in zip(run(result, x=x), run(proto, x=x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def of_tokens(body, outputs="", batch="N", **weights):
    weights = {"w": normal(4, 5), **weights}
    return parse(f"g (float[{batch}, 6, 4] x) => (float[{batch}, 6, 5] y{outputs}) {{ {body} }}", **weights)


@pytest.mark.parametrize("batch", ["N", "2"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5), (1, 1, 5)])
@pytest.mark.parametrize("add", ["Add (h, b)", "Add (b, h)"])
def test_matmul_and_its_bias_become_gemm_between_reshapes(add, shape, batch):
    proto = of_tokens(f"h = MatMul (x, w)\n y = {add}", batch=batch, b=normal(*shape))
    result, outcome = converted(proto)
    assert op_types(result) == ["Reshape", "Gemm", "Reshape"]
    assert initializers(result)[result.graph.node[1].input[2]].shape == (5,)
    assert outcome.notes == ("1 linear layers made Gemm",)
    assert_same(result, proto, 6, 4, batches=(1, 2, 3) if batch == "N" else (2,))


def test_a_matmul_without_bias_becomes_gemm():
    proto = of_tokens("y = MatMul (x, w)")
    result, _ = converted(proto)
    assert op_types(result) == ["Reshape", "Gemm", "Reshape"]
    assert_same(result, proto, 6, 4)


@pytest.mark.parametrize("shape", [(6, 1), (6, 5), (1, 6, 5)])
def test_what_differs_between_tokens_is_added_to_the_tokens(shape):
    proto = of_tokens("h = MatMul (x, w)\n y = Add (h, b)", b=normal(*shape))
    result, _ = converted(proto)
    assert op_types(result) == ["Reshape", "Gemm", "Reshape", "Add"]
    assert_same(result, proto, 6, 4)


def test_a_constant_that_adds_an_axis_is_no_bias():
    proto = parse(
        "g (float[N, 4] x) => (float[1, N, 5] y) { h = MatMul (x, w)\n y = Add (h, b) }",
        w=normal(4, 5),
        b=normal(1, 1, 5),
    )
    result, _ = converted(proto)
    assert op_types(result) == ["Gemm", "Add"]
    assert_same(result, proto, 4)


def test_a_matrix_needs_no_reshape():
    proto = parse(
        "g (float[N, 4] x) => (float[N, 5] y) { h = MatMul (x, w)\n y = Add (h, b) }", w=normal(4, 5), b=normal(1, 5)
    )
    result, _ = converted(proto)
    assert op_types(result) == ["Gemm"]
    assert_same(result, proto, 4)


BLOCK = """
    n = LayerNormalization (x, gain, shift)
    h1 = MatMul (n, w1)
    h2 = Add (h1, b1)
    s = Sigmoid (h2)
    h3 = Mul (h2, s)
    h4 = MatMul (h3, w2)
    h5 = Add (h4, b2)
    h6 = Mul (h5, scale)
    z = Add (x, h6)
"""
WEIGHTS = {
    "gain": normal(4),
    "shift": normal(4),
    "w1": normal(4, 8),
    "b1": normal(8),
    "w2": normal(8, 4),
    "b2": normal(4),
    "scale": normal(1, 1, 4),
}


@pytest.mark.parametrize("axes", ["6", "3, 2"])
def test_a_whole_mlp_works_on_one_matrix(axes):
    proto = parse(f"g (float[N, {axes}, 4] x) => (float[N, {axes}, 4] z) {{ {BLOCK} }}", **WEIGHTS)
    result, outcome = converted(proto)
    expected = ["Reshape", "LayerNormalization", "Gemm", "Sigmoid", "Mul", "Gemm", "Mul", "Add", "Reshape"]
    assert op_types(result) == expected
    assert outcome.notes == ("2 linear layers made Gemm",)
    assert_same(result, proto, *map(int, axes.split(", ")), 4)


def test_attention_between_linear_layers_gets_its_tokens_back():
    proto = parse(
        """g (float[N, 6, 4] x) => (float[N, 6, 4] y) {
            q = MatMul (x, w)
            k = Transpose <perm = [0, 2, 1]> (x)
            a = MatMul (q, k)
            p = Softmax (a)
            v = MatMul (p, x)
            y = MatMul (v, w)
        }""",
        w=normal(4, 4),
    )
    result, _ = converted(proto)
    assert op_types(result).count("Gemm") == op_types(result).count("MatMul") == 2
    assert_same(result, proto, 6, 4)


def test_gemm_keeps_the_name_of_its_matmul():
    proto = of_tokens("h = MatMul (x, w)\n y = Add (h, b)", b=normal(5))
    proto.graph.node[0].name = "/blocks.0/fc1/MatMul"
    result, _ = converted(proto)
    assert [node.name for node in result.graph.node if node.op_type == "Gemm"] == ["/blocks.0/fc1/MatMul"]


def test_a_weight_that_two_layers_share_stays_shared():
    proto = parse(
        "g (float[N, 6, 4] x) => (float[N, 6, 4] y) { h = MatMul (x, w)\n s = Relu (h)\n y = MatMul (s, w) }",
        w=normal(4, 4),
    )
    result, _ = converted(proto)
    assert op_types(result) == ["Reshape", "Gemm", "Relu", "Gemm", "Reshape"]
    assert_same(result, proto, 6, 4)


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul (x, w)\n s = Sigmoid (h)\n y = Mul (h, s)",
        "h = MatMul (x, w)\n y = Add (h, b)",
        "m = MatMul (x, w)\n h = Relu (m)\n y = Add (h, b)",
    ],
)
def test_an_output_amid_the_layers_keeps_its_name_and_value(body):
    proto = of_tokens(body, outputs=", float[N, 6, 5] h", b=normal(5))
    result, _ = converted(proto)
    assert [output.name for output in result.graph.output] == ["y", "h"]
    assert "Gemm" in op_types(result)
    assert_same(result, proto, 6, 4)


def test_a_value_that_a_subgraph_reads_keeps_its_shape():
    proto = parse(
        """g (float[N, 6, 4] x, bool flag) => (float[N, 6, 5] y, float[N, 5, 6] z) {
            h = MatMul (x, w)
            y = Relu (h)
            z = If <
                then_branch = t () => (float[N, 5, 6] z1) { z1 = Transpose <perm = [0, 2, 1]> (h) },
                else_branch = e () => (float[N, 5, 6] z2) { n = Neg (h)\n z2 = Transpose <perm = [0, 2, 1]> (n) }
            > (flag)
        }""",
        w=normal(4, 5),
    )
    result, _ = converted(proto)
    assert "Gemm" in op_types(result)
    x = normal(2, 6, 4)
    for a, b in zip(run(result, x=x, flag=np.array(True)), run(proto, x=x, flag=np.array(True)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("line", ["y = MatMul (x, x)", "y = MatMul (w, x)"])
def test_products_that_are_no_linear_layer_stay(line):
    proto = parse(f"g (float[N, 4, 4] x) => (float[N, 4, 4] y) {{ {line} }}", w=normal(4, 4))
    result, outcome = converted(proto)
    assert not outcome.modified
    assert op_types(result) == ["MatMul"]


def test_height_and_width_that_may_change_are_left_alone():
    proto = parse("g (float[N, H, W, 4] x) => (float[N, H, W, 5] y) { y = MatMul (x, w) }", w=normal(4, 5))
    result, outcome = converted(proto)
    assert not outcome.modified
    assert outcome.notes == ("1 linear layers left as they are: the shapes around them aren't known for every batch",)
    assert_same(result, proto, 2, 3, 4)


def test_a_normalisation_over_more_than_the_channels_stays_outside():
    proto = of_tokens("n = LayerNormalization <axis = 1> (x, gain)\n y = MatMul (n, w)", gain=normal(6, 4))
    result, _ = converted(proto)
    assert op_types(result) == ["LayerNormalization", "Reshape", "Gemm", "Reshape"]
    assert_same(result, proto, 6, 4)


def test_operands_of_different_shapes_stay_outside():
    proto = parse(
        """g (float[N, 6, 4] x, float[1, 6, 4] e) => (float[N, 6, 5] y) { s = Add (x, e)\n y = MatMul (s, w) }""",
        w=normal(4, 5),
    )
    result, _ = converted(proto)
    assert op_types(result) == ["Add", "Reshape", "Gemm", "Reshape"]
    feeds = {"x": normal(3, 6, 4), "e": normal(1, 6, 4)}
    np.testing.assert_allclose(run(result, **feeds)[0], run(proto, **feeds)[0], rtol=1e-5, atol=1e-5)


def test_a_target_that_does_not_want_it_gets_the_graph_as_it_is():
    proto = of_tokens("y = MatMul (x, w)")
    result, outcome = converted(proto, target="tensorrt-11")
    assert op_types(result) == ["MatMul"]
    assert outcome.notes == ("target tensorrt-11 takes linear layers as MatMul",)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), FAMILIES)
def test_real_networks_compute_the_same(name, exporter):
    model = load(load_fixture(name, exporter))
    canonicalise(model)
    before, context = model.to_proto(), PassContext(model)
    LinearToGemm().run(model.graph, context)
    MergeLayout().run(model.graph, context)
    after = check(model.to_proto(), name)
    sizes = [axis.dim_value for axis in before.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal((2, *sizes)).astype(np.float32)
    a, b = run(after, input=x)[0], run(before, input=x)[0]
    assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()
