"""Elementwise arithmetic in torch is that of ONNX Runtime, exactly so for integers."""

import numpy as np
import pytest

from tests.torch_graph.comparing import assert_node_is_same, ints, normal

X, Y = normal(2, 3, 4), normal(3, 1, seed=1)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"])
def test_operands_broadcast(op):
    assert_node_is_same(f"{op} (x0, x1)", X, Y)


@pytest.mark.parametrize("op", ["Max", "Min", "Sum"])
@pytest.mark.parametrize("count", [1, 3])
def test_one_operand_and_three(op, count):
    assert_node_is_same(f"{op} ({', '.join(['x0', 'x1', 'x2'][:count])})", *[X, Y, normal(4)][:count])


@pytest.mark.parametrize(
    "op", ["Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "Reciprocal", "Round", "Sign", "Sin"]
)
def test_functions_are_the_same(op):
    assert_node_is_same(f"{op} (x0)", X)


@pytest.mark.parametrize("op", ["Log", "Sqrt"])
def test_functions_of_positive_values_are_the_same(op):
    assert_node_is_same(f"{op} (x0)", np.abs(X))


def test_halves_are_rounded_to_even():
    assert_node_is_same("Round (x0)", np.float32([-1.5, -0.5, 0.5, 1.5, 2.5]))


def test_integers_are_divided_towards_zero():
    assert_node_is_same("Div (x0, x1)", ints(7, -7, 2**53 + 1), ints(2, 2, 1), outputs="int64[] y")


def test_the_remainder_has_the_sign_of_the_divisor():
    assert_node_is_same("Mod (x0, x1)", ints(7, -7, 7, -7), ints(3, 3, -3, -3), outputs="int64[] y")


def test_with_fmod_it_has_the_sign_of_the_dividend():
    assert_node_is_same("Mod <fmod = 1> (x0, x1)", np.float32([7.5, -7.5]), np.float32([2, 2]))


@pytest.mark.parametrize("exponent", [np.float32(2), np.float32([0.5]), ints(3)], ids=str)
def test_a_power_has_the_type_of_its_base(exponent):
    assert_node_is_same("Pow (x0, e)", np.abs(X), e=exponent)


@pytest.mark.parametrize("bounds", ["low, high", "low", ", high", ""])
def test_clip_takes_either_bound_or_none(bounds):
    assert_node_is_same(f"Clip (x0{', ' if bounds else ''}{bounds})", X, low=np.float32(-0.5), high=np.float32(0.25))


def test_clip_before_opset_11_has_its_bounds_in_attributes():
    assert_node_is_same("Clip <min = -0.5, max = 0.25> (x0)", X, opset=9)


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_are_the_same(op):
    assert_node_is_same(f"{op} (x0, x1)", np.round(X), np.round(Y), outputs="bool[] y")


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic_is_the_same(op):
    assert_node_is_same(f"{op} (x0, x1)", X > 0, Y > 0, outputs="bool[] y")


def test_not_and_where_are_the_same():
    assert_node_is_same("Not (x0)", X > 0, outputs="bool[] y")
    assert_node_is_same("Where (x0, x1, x2)", X > 0, Y, normal(4))


@pytest.mark.parametrize(("to", "name"), [(1, "float"), (6, "int32"), (7, "int64"), (9, "bool"), (11, "double")])
def test_casts_are_the_same(to, name):
    assert_node_is_same(f"Cast <to = {to}> (x0)", 3 * X, outputs=f"{name}[] y")


def test_cast_like_takes_the_type_only():
    assert_node_is_same("CastLike (x0, x1)", 3 * X, ints(1), opset=18, outputs="int64[] y")


def test_dropout_does_nothing():
    assert_node_is_same("Dropout <seed = 1> (x0, ratio)", X, ratio=np.float32(0.9))
