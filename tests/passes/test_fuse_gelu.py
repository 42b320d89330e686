"""GELU becomes one node, however it was spelt, and nothing changes at the output."""

import numpy as np
import onnx
import pytest
from onnxquant.passes.fuse_gelu import FuseGelu

from onnxquant.graph.model import check, load
from onnxquant.pass_manager import PassContext
from onnxquant.pipeline import canonicalise
from onnxquant.targets import load_target
from tests.fixtures import load_fixture, one_of_each_family
from tests.graphs import op_types, parse, run

TORCHSCRIPT = """
    a = Div (x, root)
    b = Erf (a)
    c = Add (b, one)
    d = Mul (x, c)
    y = Mul (d, half)
"""
ERF_FORMS = {
    "torchscript": TORCHSCRIPT,
    "torch dynamo": "a = Div (x, root)\n b = Erf (a)\n c = Add (one, b)\n d = Mul (x, c)\n y = Mul (half, d)",
    "reciprocal": "a = Mul (reciprocal, x)\n b = Erf (a)\n c = Add (b, one)\n h = Mul (x, half)\n y = Mul (h, c)",
    "halved probability": "a = Div (x, root)\n b = Erf (a)\n c = Add (b, one)\n p = Mul (c, half)\n y = Mul (x, p)",
    "half plus half": "a = Div (x, root)\n b = Erf (a)\n h = Mul (b, half)\n p = Add (h, half)\n y = Mul (p, x)",
    "divided by two": "a = Div (x, root)\n b = Erf (a)\n c = Add (b, one)\n d = Mul (c, x)\n y = Div (d, two)",
    "half shared": "a = Div (x, root)\n b = Erf (a)\n h = Mul (x, half)\n d = Mul (h, b)\n y = Add (d, h)",
}
TANH_FORMS = {
    "torch": """
        cube = Pow (x, three)
        k = Mul (kappa, cube)
        s = Add (x, k)
        i = Mul (beta, s)
        t = Tanh (i)
        u = Add (t, one)
        d = Mul (x, u)
        y = Mul (half, d)
    """,
    "products": """
        square = Mul (x, x)
        cube = Mul (x, square)
        k = Mul (kappa, cube)
        s = Add (k, x)
        i = Mul (s, beta)
        t = Tanh (i)
        u = Add (one, t)
        h = Mul (half, x)
        y = Mul (h, u)
    """,
    "factored": """
        bx = Mul (x, beta)
        kx = Mul (x, kappa)
        square = Mul (kx, x)
        s = Add (square, one)
        i = Mul (bx, s)
        t = Tanh (i)
        u = Add (one, t)
        h = Mul (half, x)
        y = Mul (h, u)
    """,
}
X = np.linspace(-6, 6, 48, dtype=np.float32).reshape(2, 3, 8)


def constants(dtype=np.float32, **changed):
    values = {
        "root": np.sqrt(2),
        "reciprocal": np.sqrt(0.5),
        "one": 1,
        "two": 2,
        "three": 3,
        "half": 0.5,
        "kappa": 0.044715,
        "beta": np.sqrt(2 / np.pi),
    }
    return {name: np.asarray(value, dtype) for name, value in {**values, **changed}.items()}


def graph(body, opset=17, dtype="float", outputs="", **changed):
    text = f"g ({dtype}[2, 3, 8] x) => ({dtype}[2, 3, 8] y{outputs}) {{ {body} }}"
    used = {name: value for name, value in constants(**changed).items() if f" {name}" in body or f"({name}" in body}
    if dtype == "float16":
        used = {name: value.astype(np.float16) for name, value in used.items()}
    return parse(text, opset, **used)


def fused(proto, target="onnxruntime"):
    model = load(proto)
    result = FuseGelu().run(model.graph, PassContext(model, load_target(target)))
    return check(model.to_proto(), "model"), result


def opset_of(proto):
    return {entry.domain: entry.version for entry in proto.opset_import}[""]


@pytest.mark.parametrize("body", ERF_FORMS.values(), ids=ERF_FORMS)
def test_an_erf_form_becomes_one_node(body):
    proto = graph(body)
    result, outcome = fused(proto)
    assert op_types(result) == ["Gelu"]
    assert outcome.modified
    np.testing.assert_allclose(run(result, x=X)[0], run(proto, x=X)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", TANH_FORMS.values(), ids=TANH_FORMS)
def test_a_tanh_form_becomes_one_node_that_approximates(body):
    proto = graph(body)
    result, _ = fused(proto)
    assert op_types(result) == ["Gelu"]
    assert result.graph.node[0].attribute[0].s == b"tanh"
    np.testing.assert_allclose(run(result, x=X)[0], run(proto, x=X)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changed", [{"root": 1.5}, {"one": 1.01}, {"half": 0.51}, {"root": np.full(8, np.sqrt(2))}])
def test_other_constants_are_another_function(changed):
    result, outcome = fused(graph(TORCHSCRIPT, **changed))
    assert "Gelu" not in op_types(result)
    assert not outcome.modified


@pytest.mark.parametrize("changed", [{"kappa": 0.05}, {"beta": 0.8}, {"three": 2}])
def test_other_constants_are_no_approximation_of_gelu(changed):
    assert "Gelu" not in op_types(fused(graph(TANH_FORMS["torch"], **changed))[0])


def test_constants_written_to_a_few_digits_count():
    assert op_types(fused(graph(TORCHSCRIPT, root=1.4142))[0]) == ["Gelu"]


def test_a_constant_that_adds_a_dimension_is_left():
    proto = graph(TORCHSCRIPT, half=np.full((1, 1, 1), 0.5))
    assert op_types(fused(proto)[0]) == ["Gelu"]
    body = TORCHSCRIPT.replace("y =", "z =") + "y = Squeeze (z)"
    assert "Gelu" not in op_types(fused(graph(body, half=np.full((1, 1, 1, 1), 0.5)))[0])


def test_erf_of_another_value_than_is_multiplied_is_left():
    body = "s = Sigmoid (x)\n" + TORCHSCRIPT.replace("Div (x, root)", "Div (s, root)")
    assert "Gelu" not in op_types(fused(graph(body))[0])


@pytest.mark.parametrize("inner", ["b", "c", "d"])
def test_a_value_that_is_read_elsewhere_keeps_its_nodes(inner):
    body = TORCHSCRIPT.replace("y =", "z =") + f"r = Relu ({inner})\n y = Add (z, r)"
    assert "Gelu" not in op_types(fused(graph(body))[0])


def test_a_value_that_is_an_output_keeps_its_nodes():
    result, _ = fused(graph(TORCHSCRIPT, outputs=", float[2, 3, 8] c"))
    assert "Gelu" not in op_types(result)


def test_what_is_beside_the_way_may_be_read_elsewhere():
    body = TORCHSCRIPT.replace("y =", "z =") + "r = Relu (a)\n y = Add (z, r)"
    assert sorted(op_types(fused(graph(body))[0])) == ["Add", "Div", "Gelu", "Relu"]


def test_float16_has_coarser_constants():
    result, _ = fused(graph(TORCHSCRIPT, 19, dtype="float16"))
    assert op_types(result) == ["Gelu"]
    result, _ = fused(graph(TANH_FORMS["products"], 19, dtype="float16"))
    assert op_types(result) == ["Gelu"]


@pytest.mark.parametrize(("opset", "after"), [(13, 20), (17, 20), (19, 20), (20, 20), (23, 23)])
def test_the_opset_is_raised_where_it_is_too_old(opset, after):
    proto = graph(TORCHSCRIPT, opset)
    result, outcome = fused(proto)
    assert op_types(result) == ["Gelu"]
    assert opset_of(result) == after
    assert ("raised" in outcome.notes[0]) == (opset < 20)
    np.testing.assert_allclose(run(result, x=X)[0], run(proto, x=X)[0], rtol=1e-5, atol=1e-6)


def test_nodes_whose_form_changed_with_the_opset_are_converted():
    body = TORCHSCRIPT.replace("y =", "z =") + (
        """
        m = ReduceMean <axes = [2], keepdims = 1> (z)
        n = ReduceL2 <axes = [-1]> (z)
        s, t = Split <axis = 2> (z)
        w = Concat <axis = 2> (t, s)
        v = Sub (w, m)
        y = Add (v, n)
        """
    )
    proto = graph(body, 17)
    result, _ = fused(proto)
    assert "Gelu" in op_types(result)
    assert "Constant" not in op_types(result)
    np.testing.assert_allclose(run(result, x=X)[0], run(proto, x=X)[0], rtol=1e-5, atol=1e-6)


def test_a_model_without_gelu_keeps_its_opset():
    proto = graph("e = Erf (x)\n y = Add (e, one)")
    result, outcome = fused(proto)
    assert opset_of(result) == 17
    assert outcome.notes == ("no GELU spelt out",)


def test_a_target_that_wants_no_gelu_gets_none():
    result, outcome = fused(graph(TORCHSCRIPT), "tensorrt-8.6")
    assert opset_of(result) == 17
    assert "Erf" in op_types(result)
    assert "tensorrt-8.6" in outcome.notes[0]


def test_functions_survive_since_nothing_is_converted():
    proto = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 17, "own" : 1]>
        g (float[2, 3, 8] x0) => (float[2, 3, 8] y)
        <float root = {{1.4142135}}, float one = {{1.0}}, float half = {{0.5}}> {{
            x = own.mean (x0)
            {TORCHSCRIPT}
        }}
        <opset_import: ["" : 17], domain: "own">
        mean (a) => (b) {{
            m = ReduceMean <axes = [2]> (a)
            b = Sub (a, m)
        }}
    """)
    result, outcome = fused(proto)
    assert opset_of(result) == 17
    assert len(result.functions) == 1
    assert not outcome.modified
    assert "1 GELU left as they are: opset 17 can't be raised" in outcome.notes[0]
    run(result, x0=X)


def test_metadata_domains_and_nodes_survive_a_raised_opset():
    proto = graph("r = ReduceMax <axes = [2]> (x)\n" + TORCHSCRIPT.replace("y =", "z =") + "y = Add (z, r)")
    for node in proto.graph.node:
        node.name = f"/mlp/act/{node.output[0]}"
        node.metadata_props.add(key="scope", value=node.output[0])
    proto.metadata_props.add(key="mean", value="0.5")
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model = load(proto)
    before = {node.name: node for node in model.graph.nodes}
    FuseGelu().run(model.graph, PassContext(model, load_target("onnxruntime")))
    result = check(model.to_proto(), "model")
    assert all(before[node.name] is node for node in model.graph.nodes)
    assert {entry.domain for entry in result.opset_import} == {"", "com.microsoft"}
    assert [prop.value for prop in result.metadata_props] == ["0.5"]
    assert [(node.op_type, node.metadata_props[0].value) for node in result.graph.node] == [
        ("ReduceMax", "r"),
        ("Gelu", "z"),
        ("Add", "y"),
    ]
    assert result.ir_version >= 9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), one_of_each_family())
def test_every_gelu_of_the_zoo_is_fused(name, exporter):
    model = load(load_fixture(name, exporter))
    canonicalise(model)
    before, spelt = model.to_proto(), sum(node.op == "Erf" for node in model.graph.nodes)
    known = sum(node.op == "Gelu" for node in model.graph.nodes)
    FuseGelu().run(model.graph, PassContext(model, load_target("onnxruntime")))
    after = check(model.to_proto(), name)
    assert op_types(after).count("Gelu") == spelt + known
    assert "Erf" not in op_types(after)
    shape = [size.dim_value or 1 for size in before.graph.input[0].type.tensor_type.shape.dim]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected, found = (run(proto, **{before.graph.input[0].name: image})[0] for proto in (before, after))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
