"""Activation functions and Softmax in torch are those of ONNX Runtime."""

import numpy as np
import pytest

from tests.torch_graph.comparing import assert_node_is_same, normal

X = 3 * normal(2, 5, 4)


@pytest.mark.parametrize(
    "call",
    [
        "Celu <alpha = 0.5> (x0)",
        "Elu <alpha = 0.5> (x0)",
        "HardSigmoid (x0)",
        "HardSigmoid <alpha = 0.16666667, beta = 0.5> (x0)",
        "HardSwish (x0)",
        "LeakyRelu (x0)",
        "LeakyRelu <alpha = 0.3> (x0)",
        "Mish (x0)",
        "Relu (x0)",
        "Selu (x0)",
        "Selu <alpha = 1.5, gamma = 2.0> (x0)",
        "Sigmoid (x0)",
        "Softplus (x0)",
        "Softsign (x0)",
        "Tanh (x0)",
        "ThresholdedRelu <alpha = 0.5> (x0)",
    ],
)
def test_functions_are_the_same(call):
    assert_node_is_same(call, X, opset=18)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_the_same(approximate):
    assert_node_is_same(f'Gelu <approximate = "{approximate}"> (x0)', X, opset=20)


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swish_is_the_same(alpha):
    assert_node_is_same(f"Swish <alpha = {alpha}> (x0)", X, opset=24, reference=True)


@pytest.mark.parametrize("slope", [normal(4), normal(5, 1), normal(1)], ids=["last", "channels", "one"])
def test_prelu_slopes_broadcast_from_the_right(slope):
    assert_node_is_same("PRelu (x0, slope)", X, slope=slope)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", ["", "<axis = 0>", "<axis = -2>"])
def test_softmax_is_over_one_axis(op, axis):
    assert_node_is_same(f"{op} {axis} (x0)", X)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", ["", "<axis = 0>"])
def test_softmax_before_opset_13_is_over_all_axes_from_one_on(op, axis):
    assert_node_is_same(f"{op} {axis} (x0)", X, opset=12)


def test_softplus_of_large_values_is_exact():
    assert_node_is_same("Softplus (x0)", np.float32([-100, -20, 19.9, 20.1, 100]))
