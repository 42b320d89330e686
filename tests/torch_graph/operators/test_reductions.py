"""Reductions in torch are those of ONNX Runtime."""

import numpy as np
import pytest

from tests.torch_graph.comparing import assert_node_is_same, ints, normal

X = np.abs(normal(2, 3, 4))
OPS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("attributes", ["", "keepdims = 0"])
def test_axes_are_an_input(op, attributes):
    assert_node_is_same(f"Reduce{op} <{attributes}> (x0, axes)".replace("<>", ""), X, opset=18, axes=ints(0, -1))


@pytest.mark.parametrize("op", OPS)
def test_all_axes_are_reduced_where_none_is_named(op):
    assert_node_is_same(f"Reduce{op} <keepdims = 0> (x0)", X)


@pytest.mark.parametrize("op", [op for op in OPS if op != "Sum"])
def test_axes_were_an_attribute_before_opset_18(op):
    assert_node_is_same(f"Reduce{op} <axes = [-2, 0]> (x0)", X)


def test_those_of_reduce_sum_were_before_opset_13():
    assert_node_is_same("ReduceSum <axes = [-2, 0]> (x0)", X, opset=11)


def test_nothing_is_reduced_where_empty_axes_say_so():
    assert_node_is_same("ReduceSum <noop_with_empty_axes = 1> (x0, axes)", X, axes=ints())


def test_sums_of_integers_are_exact():
    assert_node_is_same("ReduceSum (x0, axes)", ints(2**53, 1), outputs="int64[] y", axes=ints(0))
    assert_node_is_same("ReduceSum (x0, axes)", np.int32([3, 4]), outputs="int32[] y", axes=ints(0))


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_positions_of_extremes_are_the_same(op, keepdims):
    assert_node_is_same(f"{op} <axis = -1, keepdims = {keepdims}> (x0)", X, outputs="int64[] y")


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums_are_the_same(exclusive, reverse):
    call = f"CumSum <exclusive = {exclusive}, reverse = {reverse}> (x0, axis)"
    assert_node_is_same(call, X, axis=np.int64(-1))
    assert_node_is_same(call, ints(1, 2, 3), outputs="int64[] y", axis=np.int64(0))
