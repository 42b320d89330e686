"""Normalisations in torch are those of ONNX Runtime."""

import numpy as np
import pytest

from tests.torch_graph.comparing import assert_node_is_same, assert_same, model_of, normal

X = 5 + normal(2, 6, 3, 4)


def test_batch_norm_uses_the_statistics_it_is_given():
    call = "BatchNormalization <epsilon = 0.01, momentum = 0.5> (x0, s, b, m, v)"
    assert_node_is_same(call, X, s=normal(6), b=normal(6), m=normal(6), v=np.abs(normal(6)))


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_layer_norm_is_over_all_axes_from_one_on(axis):
    shape = X.shape[axis:]
    call = f"LayerNormalization <axis = {axis}, epsilon = 0.01> (x0, s, b)"
    assert_node_is_same(call, X, s=normal(*shape), b=normal(*shape, seed=1))


def test_the_bias_of_a_layer_norm_is_optional():
    assert_node_is_same("LayerNormalization (x0, s)", X, s=normal(4))


def test_a_decomposed_layer_norm_is_the_same():
    model = model_of(
        """
        g (float[2, 6, 3, 4] x) => (float[] y) {
            two = Constant <value_float = 2.0> ()
            eps = Constant <value = float {1e-5}> ()
            mean = ReduceMean <axes = [-1]> (x)
            centred = Sub (x, mean)
            squares = Pow (centred, two)
            variance = ReduceMean <axes = [-1]> (squares)
            shifted = Add (variance, eps)
            deviation = Sqrt (shifted)
            normed = Div (centred, deviation)
            y = Mul (normed, scale)
        }
        """,
        scale=normal(4),
    )
    assert_same(model, x=X)


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 6, 7), (2, 6, 1, 1)], ids=["image", "line", "one pixel"])
def test_instance_norm_is_the_same(shape):
    call = "InstanceNormalization <epsilon = 0.01> (x0, s, b)"
    assert_node_is_same(call, 5 + normal(*shape), s=normal(6), b=normal(6, seed=1))


def test_group_norm_is_the_same():
    call = "GroupNormalization <num_groups = 3, epsilon = 0.01> (x0, s, b)"
    assert_node_is_same(call, X, opset=21, outputs="float[2, 6, 3, 4] y", s=normal(6), b=normal(6, seed=1))


def test_rms_norm_is_the_same():
    assert_node_is_same("RMSNormalization <epsilon = 0.01> (x0, s)", X, opset=23, reference=True, s=normal(4))


@pytest.mark.parametrize("p", [1, 2])
def test_lp_norm_is_the_same(p):
    assert_node_is_same(f"LpNormalization <axis = 1, p = {p}> (x0)", X)
