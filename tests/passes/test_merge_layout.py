"""Values that are moved several times are moved once or twice, the same at every batch size."""

import numpy as np
import pytest
from onnxquant.passes.classify_blocks import classify
from onnxquant.passes.merge_layout import MergeLayout

from onnxquant.graph.model import check, load
from onnxquant.pass_manager import PassContext
from onnxquant.pipeline import canonicalise
from onnxquant.targets import load_target
from tests.fixtures import FIXTURES, first_of_families, load_fixture
from tests.graphs import op_types, parse, run

FAMILIES = [entry for entry in FIXTURES if entry[0] in first_of_families()]


def merged(proto, target="onnxruntime"):
    model = load(proto)
    result = MergeLayout().run(model.graph, PassContext(model, load_target(target)))
    return check(model.to_proto(), "model"), result


def values(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def assert_same(result, proto, *shape, batches=(1, 2, 3)):
    for batch in batches:
        x = values(batch, *shape)
        for a, b in zip(run(result, x=x), run(proto, x=x), strict=True):
            np.testing.assert_array_equal(a, b)


UNFOLD = """
    s = Shape (x)
    n = Gather (s, zero)
    nc = Mul (n, channels)
    nch = Mul (nc, rows)
    nch1 = Unsqueeze (nch, axis)
    n1 = Unsqueeze (n, axis)
    np = Mul (n, four)
    np1 = Unsqueeze (np, axis)
    s1 = Concat <axis = 0> (nch1, two1, columns1, two1)
    s2 = Concat <axis = 0> (n1, channels1, patches1, four1)
    s3 = Concat <axis = 0> (np1, patches1, left1)
    a = Reshape (x, s1)
    b = Transpose <perm = [0, 2, 1, 3]> (a)
    c = Reshape (b, s2)
    d = Transpose <perm = [0, 3, 2, 1]> (c)
    y = Reshape (d, s3)
"""
"""MobileViT's unfolding of (batch, 16, 8, 8) into 16 patches of 2 x 2 pixels, as TorchScript writes it."""
NUMBERS = {"zero": 0, "channels": 16, "rows": 4, "four": 4}
LISTS = {"axis": 0, "two1": 2, "columns1": 4, "channels1": 16, "patches1": 16, "four1": 4, "left1": -1}
UNFOLD_SIZES = {
    **{name: np.int64(value) for name, value in NUMBERS.items()},
    **{name: np.array([value], np.int64) for name, value in LISTS.items()},
}


def test_patches_are_unfolded_by_one_axis_and_then_by_runs_of_channels():
    proto = parse(f"g (float[N, 16, 8, 8] x) => (float[P, 16, 16] y) {{ {UNFOLD} }}", **UNFOLD_SIZES)
    result, outcome = merged(proto)
    assert op_types(result) == ["Reshape", "Transpose", "Reshape", "Transpose", "Reshape"]
    inwards, blocks = (node.attribute[0].ints for node in result.graph.node if node.op_type == "Transpose")
    assert list(inwards) == [0, 2, 1]
    assert blocks[-1] == 5
    assert outcome.notes == ("1 chains of Reshape and Transpose merged, 3 shapes made constant",)
    assert_same(result, proto, 16, 8, 8)


def test_nodes_that_stay_keep_names_of_the_chain():
    proto = parse(f"g (float[N, 16, 8, 8] x) => (float[P, 16, 16] y) {{ {UNFOLD} }}", **UNFOLD_SIZES)
    before = load(proto).graph.nodes
    assert {node.name for node in merged(proto)[0].graph.node} < {node.name for node in before}


def test_height_and_width_that_may_change_are_left_alone():
    proto = parse(
        """g (float[N, 4, H, W] x) => (float[N, T, 4] y) {
            s = Shape <end = 2> (x)
            t = Concat <axis = 0> (s, left)
            a = Reshape (x, t)
            b = Transpose <perm = [0, 2, 1]> (a)
            c = Transpose <perm = [0, 2, 1]> (b)
            y = Transpose <perm = [0, 2, 1]> (c)
        }""",
        left=np.array([-1]),
    )
    result, outcome = merged(proto)
    assert not outcome.modified
    assert op_types(result) == op_types(proto)
    assert_same(result, proto, 4, 3, 5)


def test_a_shape_computed_from_the_batch_size_becomes_constant():
    proto = parse(
        """g (float[N, 4, 6] x) => (float[A, 2, B] y) {
            s = Shape (x)
            n = Gather (s, zero)
            m = Mul (n, two)
            t = Concat <axis = 0> (m, two, left)
            y = Reshape (x, t)
        }""",
        zero=np.array([0]),
        two=np.array([2]),
        left=np.array([-1]),
    )
    result, _ = merged(proto)
    assert op_types(result) == ["Reshape"]
    assert_same(result, proto, 4, 6)


def test_a_shape_that_is_given_stays():
    proto = parse("g (float[N, 4, 6] x, int64[2] given) => (float[A, B] y) { y = Reshape (x, given) }")
    result, outcome = merged(proto)
    assert not outcome.modified
    assert list(result.graph.node[0].input) == ["x", "given"]


@pytest.mark.parametrize("batch", ["N", "2"])
@pytest.mark.parametrize("seed", range(30))
def test_any_chain_computes_the_same(seed, batch):
    lines, targets, rank = random_chain(np.random.default_rng(seed))
    output = ", ".join(f"D{axis}" for axis in range(rank))
    proto = parse(f"g (float[{batch}, 4, 6, 10] x) => (float[{output}] y) {{ {lines} }}", **targets)
    result, _ = merged(proto)
    # A Reshape that parts digits of sizes 2 and 3 as 3 and 2 makes no permutation of digits.
    assert op_types(result).count("Transpose") <= 2 or op_types(result) == op_types(proto)
    assert_same(result, proto, 4, 6, 10, batches=(1, 2, 3) if batch == "N" else (2,))


def random_chain(rng):
    """A chain that takes (batch, 4, 6, 10) apart and together: lines of ONNX text, targets, and the rank of y.

    An axis is a number of values; the one that holds the batch axis is negative, and -1 in a target.
    """
    axes, lines, targets, tensor = [-1, 4, 6, 10], [], {}, "x"
    for step in range(8):
        if step % 2:
            perm = rng.permutation(len(axes)).tolist()
            axes = [axes[axis] for axis in perm]
            lines.append(f"t{step} = Transpose <perm = {perm}> ({tensor})")
        else:
            position = int(rng.integers(len(axes) - 1))
            if axes[position] % 2 == 0 and (len(axes) == 2 or rng.integers(2)):
                axes[position : position + 1] = [axes[position] // 2, 2]
            elif len(axes) > 2:
                axes[position : position + 2] = [axes[position] * axes[position + 1]]
            targets[f"s{step}"] = np.maximum(axes, -1)
            lines.append(f"t{step} = Reshape ({tensor}, s{step})")
        tensor = f"t{step}"
    return "\n".join([*lines, f"y = Identity ({tensor})"]), targets, len(axes)


def chain(lines, outputs="", **weights):
    return parse(f"g (float[N, 4, 6] x) => (float[N, 4, 6] y{outputs}) {{ {lines} }}", **weights)


THERE = "a = Transpose <perm = [0, 2, 1]> (x)\n"
BACK = "b = Transpose <perm = [0, 2, 1]> (a)\n"


def test_a_transpose_and_its_inverse_disappear():
    proto = chain(THERE + BACK + "y = Relu (b)")
    result, outcome = merged(proto)
    assert op_types(result) == ["Relu"]
    assert outcome.modified
    assert_same(result, proto, 4, 6)


def test_a_transpose_alone_stays():
    proto = parse("g (float[N, 4, 6] x) => (float[N, 6, 4] a) {" + THERE + "}")
    assert not merged(proto)[1].modified


def test_reshape_and_transpose_as_they_should_be_stay():
    proto = parse(
        """g (float[N, 6, 8] x) => (float[N, 2, 6, 4] y) {
            a = Reshape (x, heads)
            y = Transpose <perm = [0, 2, 1, 3]> (a)
        }""",
        heads=np.array([-1, 6, 2, 4]),
    )
    result, outcome = merged(proto)
    assert not outcome.modified
    assert op_types(result) == ["Reshape", "Transpose"]


def test_a_transpose_of_the_last_two_axes_needs_no_reshape_around_it():
    proto = parse(
        """g (float[N, 2, 6, 4] x) => (float[N, 2, 4, 6] y) {
            a = Reshape (x, flat)
            b = Transpose <perm = [0, 2, 1]> (a)
            y = Reshape (b, deep)
        }""",
        flat=np.array([-1, 6, 4]),
        deep=np.array([-1, 2, 4, 6]),
    )
    result, _ = merged(proto)
    assert op_types(result) == ["Transpose"]
    assert_same(result, proto, 2, 6, 4)


@pytest.mark.parametrize("rest", ["y = Relu (b)\n z = Relu (a)", "y = Add (b, x)\n z = Relu (a)"])
def test_a_chain_ends_where_another_node_reads_a_value(rest):
    proto = chain(THERE + BACK + rest, outputs=", float[N, 6, 4] z")
    result, outcome = merged(proto)
    assert not outcome.modified
    assert_same(result, proto, 4, 6)


def test_a_chain_ends_at_an_output_of_the_graph():
    proto = chain(THERE + "y = Transpose <perm = [0, 2, 1]> (a)", outputs=", float[N, 6, 4] a")
    result, outcome = merged(proto)
    assert not outcome.modified
    assert [output.name for output in result.graph.output] == ["y", "a"]


def test_an_output_that_is_the_input_moved_there_and_back_keeps_its_name():
    proto = chain(THERE + "y = Transpose <perm = [0, 2, 1]> (a)")
    result, _ = merged(proto)
    assert [output.name for output in result.graph.output] == ["y"]
    assert_same(result, proto, 4, 6)


def test_a_chain_ends_where_a_subgraph_reads_a_value():
    proto = parse(
        f"""g (float[N, 4, 6] x, bool flag) => (float[N, 4, 6] y, float[N, 6, 4] z) {{
            {THERE}{BACK}
            y = Relu (b)
            z = If <
                then_branch = t () => (float[N, 6, 4] z1) {{ z1 = Relu (a) }},
                else_branch = e () => (float[N, 6, 4] z2) {{ z2 = Neg (a) }}
            > (flag)
        }}"""
    )
    result, outcome = merged(proto)
    assert not outcome.modified
    x = values(2, 4, 6)
    np.testing.assert_array_equal(run(result, x=x, flag=np.array(True))[1], run(proto, x=x, flag=np.array(True))[1])


def test_a_target_that_does_not_want_it_gets_the_graph_as_it_is():
    proto = chain(THERE + BACK + "y = Relu (b)")
    result, outcome = merged(proto, target="tensorrt-11")
    assert op_types(result) == op_types(proto)
    assert outcome.notes == ("target tensorrt-11 takes chains of Reshape and Transpose as they are",)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), FAMILIES)
def test_real_networks_compute_the_same_and_have_the_same_blocks(name, exporter):
    model = load(load_fixture(name, exporter))
    canonicalise(model)
    before, blocks = model.to_proto(), classify(model.graph, model).count()
    MergeLayout().run(model.graph, PassContext(model))
    after = check(model.to_proto(), name)
    assert classify(model.graph, model).count() == blocks
    sizes = [axis.dim_value for axis in before.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal((2, *sizes)).astype(np.float32)
    np.testing.assert_allclose(run(after, input=x)[0], run(before, input=x)[0], rtol=1e-4, atol=1e-5)
