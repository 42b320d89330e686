"""Picking values by position in torch is what ONNX Runtime does."""

import numpy as np
import pytest

from tests.torch_graph.comparing import assert_node_is_same, ints, normal

X = normal(3, 4, 5)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(
    "indices", [np.int64(-1), ints(2, 0, -3), ints(1, 0, 2, -1).reshape(2, 2)], ids=["one", "list", "table"]
)
def test_gather_takes_indices_of_any_rank(axis, indices):
    assert_node_is_same(f"Gather <axis = {axis}> (x0, i)", X, i=indices)


def test_gather_elements_is_the_same():
    assert_node_is_same("GatherElements <axis = -1> (x0, i)", X, i=ints(*[0, -1, 3] * 8).reshape(3, 4, 2))


@pytest.mark.parametrize(
    ("batch", "indices"),
    [
        (0, ints(0, 1, -1, -2).reshape(2, 2)),
        (0, ints(2)),
        (1, ints(0, 1, 3, 4, -1, -2).reshape(3, 1, 2)),
        (2, ints(*range(4), *range(4), *range(4)).reshape(3, 4, 1)),
    ],
)
def test_gather_nd_takes_batch_axes(batch, indices):
    assert_node_is_same(f"GatherND <batch_dims = {batch}> (x0, i)", X, i=indices)


def test_scatter_nd_puts_values_in_place():
    assert_node_is_same("ScatterND (x0, i, x1)", X, normal(2, 5, seed=1), i=ints(0, 1, -1, -2).reshape(2, 2))


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        (ints(1), ints(3), None, None),
        (ints(-3), ints(2**63 - 1), ints(-1), None),
        (ints(0, 1), ints(-1, 100), ints(1, 2), ints(2, 3)),
        (ints(-1), ints(-(2**63)), ints(2), ints(-1)),
        (ints(3, 0), ints(0, 1), ints(1, 0), ints(-2, 1)),
        (ints(2), ints(1), ints(0), ints(1)),
    ],
)
def test_slices_are_clamped_and_go_backwards(starts, ends, axes, steps):
    given = {"s": starts, "e": ends, "a": axes, "t": steps}
    weights = {name: value for name, value in given.items() if value is not None}
    assert_node_is_same(f"Slice (x0, {', '.join(weights)})", X, **weights)


PARTS = "float[] a, float[] b, float[] c"


def test_split_takes_sizes():
    assert_node_is_same("Split <axis = -1> (x0, s)", X, outputs=PARTS, s=ints(1, 0, 4))


def test_split_without_sizes_makes_as_many_parts_as_there_are_outputs():
    assert_node_is_same("Split <axis = 0> (x0)", X, outputs=PARTS)


def test_since_opset_18_the_last_part_may_be_smaller():
    assert_node_is_same("Split <axis = 2, num_outputs = 3> (x0)", X, opset=18, outputs=PARTS)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 2])
def test_triangles_are_the_same(upper, k):
    weights = {} if k is None else {"k": np.int64(k)}
    assert_node_is_same(f"Trilu <upper = {upper}> ({', '.join(['x0', *weights])})", X, **weights)
