"""Shape operators in torch are those of ONNX Runtime."""

import numpy as np
import pytest

from tests.torch_graph.comparing import assert_node_is_same, assert_same, ints, model_of, normal

X = normal(2, 3, 4)


@pytest.mark.parametrize("shape", [ints(0, -1), ints(4, 0, 2), ints(-1), ints(0, 0, 2, -1)], ids=str)
def test_a_zero_in_a_shape_keeps_the_size(shape):
    assert_node_is_same("Reshape (x0, s)", X, s=shape)


def test_with_allowzero_it_is_a_size():
    assert_node_is_same("Reshape <allowzero = 1> (x0, s)", normal(0, 3), s=ints(3, 0))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten_makes_two_axes(axis):
    assert_node_is_same(f"Flatten <axis = {axis}> (x0)", X)


@pytest.mark.parametrize("attributes", ["", "<perm = [2, 0, 1]>"])
def test_transpose_reverses_where_nothing_is_said(attributes):
    assert_node_is_same(f"Transpose {attributes} (x0)", X)


@pytest.mark.parametrize("axes", [None, ints(0), ints(-1, 0)], ids=str)
def test_squeeze_takes_axes_or_all(axes):
    weights = {} if axes is None else {"a": axes}
    assert_node_is_same(f"Squeeze ({', '.join(['x0', *weights])})", normal(1, 3, 1), **weights)


@pytest.mark.parametrize("axes", [ints(0), ints(-1, 1), ints(3, 0)], ids=str)
def test_unsqueeze_counts_axes_in_the_result(axes):
    assert_node_is_same("Unsqueeze (x0, a)", X, a=axes)


@pytest.mark.parametrize("axis", [0, -1])
def test_concat_is_the_same(axis):
    assert_node_is_same(f"Concat <axis = {axis}> (x0, x1)", X, normal(2, 3, 4, seed=1))


@pytest.mark.parametrize("shape", [ints(2, 3, 4), ints(5, 1, 3, 1), ints(1)], ids=str)
def test_expand_broadcasts_both_ways(shape):
    assert_node_is_same("Expand (x0, s)", normal(3, 4), s=shape)


def test_tile_repeats():
    assert_node_is_same("Tile (x0, r)", X, r=ints(1, 2, 3))


@pytest.mark.parametrize(
    ("mode", "pads"),
    [
        ("constant", ints(0, 0, 1, 2, 0, 0, 3, 4)),
        ("constant", ints(1, 0, 0, 0, 0, 2, 0, 0)),
        ("constant", ints(0, 0, -1, 0, 0, 0, 0, -2)),
        ("reflect", ints(0, 0, 1, 2, 0, 0, 2, 1)),
        ("edge", ints(0, 0, 0, 2, 0, 0, 0, 1)),
        ("reflect", ints(1, 2, 0, 0, 0, 2, 0, 4)),
        ("edge", ints(0, 0, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_pads_are_the_same(mode, pads):
    assert_node_is_same(f'Pad <mode = "{mode}"> (x0, p)', normal(2, 3, 4, 5), p=pads)


def test_what_is_padded_with_may_be_given_and_so_may_axes():
    weights = {"p": ints(1, 2), "v": np.float32(7), "a": ints(-2)}
    assert_node_is_same("Pad (x0, p, v, a)", X, opset=18, **weights)


def test_pads_that_wrap_are_the_same():
    assert_node_is_same('Pad <mode = "wrap"> (x0, p)', X, opset=19, p=ints(0, 0, 1, 0, 0, 2))


@pytest.mark.parametrize("attributes", ["", "<start = 1>", "<start = -2, end = -1>", "<end = 2>"])
def test_parts_of_a_shape_are_the_same(attributes):
    assert_node_is_same(f"Shape {attributes} (x0)", X, outputs="int64[] y")


def test_the_size_is_the_same():
    assert_node_is_same("Size (x0)", X, outputs="int64[] y")


@pytest.mark.parametrize(("value", "name"), [("", "float"), ("<value = int64[1] {7}>", "int64")])
def test_constants_of_a_shape_are_zero_unless_a_value_is_given(value, name):
    assert_node_is_same(f"ConstantOfShape {value} (x0)", ints(2, 3), outputs=f"{name}[] y")


@pytest.mark.parametrize(
    ("value", "name"),
    [("value_float = 0.5", "float"), ("value_floats = [0.5, 1.5]", "float"), ("value_int = 3", "int64"),
     ("value_ints = [3, 4]", "int64"), ("value = int32[2] {1, 2}", "int32")],
)  # fmt: skip
def test_constants_are_the_same(value, name):
    assert_same(model_of(f"g () => ({name}[] y) {{ y = Constant <{value}> () }}"))


def test_ranges_are_the_same():
    assert_node_is_same("Range (x0, x1, x2)", np.int64(3), np.int64(-4), np.int64(-2), outputs="int64[4] y")
    assert_node_is_same("Range (x0, x1, x2)", np.float32(0), np.float32(1), np.float32(0.25), outputs="float[4] y")


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_becomes_space_and_back(mode):
    assert_node_is_same(f'DepthToSpace <blocksize = 2, mode = "{mode}"> (x0)', normal(2, 12, 3, 5))
    assert_node_is_same("SpaceToDepth <blocksize = 2> (x0)", normal(2, 3, 4, 6))


def test_arithmetic_on_a_dynamic_batch_is_exact():
    model = model_of(
        """
        g (float[N, 3, 4] x) => (float[] y) {
            shape = Shape (x)
            zero = Constant <value = int64 {0}> ()
            batch = Gather <axis = 0> (shape, zero)
            axes = Constant <value_ints = [0]> ()
            front = Unsqueeze (batch, axes)
            rest = Constant <value_ints = [-1]> ()
            target = Concat <axis = 0> (front, rest)
            y = Reshape (x, target)
        }
        """
    )
    for batch in (1, 5):
        assert_same(model, x=normal(batch, 3, 4))
