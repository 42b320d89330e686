"""Every layer is a matrix product: pieces of it multiply to what ONNX Runtime computes at those places."""

import numpy as np
import pytest
import torch

from onnxquant.graph.model import load
from onnxquant.search.layers import layer_of
from tests.graphs import parse, run

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def convolution(attributes, weight, channels=4, size=(7, 9)):
    shape = f"{channels}, {size[0]}, {size[1]}"
    text = f"model (float[N, {shape}] x) => (float[N, a, b, c] y) {{ y = Conv <{attributes}> (x, w) }}"
    return parse(text, w=weight), normal(2, channels, *size)


CONVOLUTIONS = {
    "3x3": ("kernel_shape = [3, 3], pads = [1, 1, 1, 1]", (6, 4, 3, 3)),
    "strided": ("kernel_shape = [3, 3], pads = [1, 0, 2, 1], strides = [2, 1]", (6, 4, 3, 3)),
    "dilated": ("kernel_shape = [3, 2], dilations = [2, 1]", (6, 4, 3, 2)),
    "grouped": ("kernel_shape = [3, 3], group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3)),
    "depthwise": ("kernel_shape = [3, 3], group = 4", (4, 1, 3, 3)),
    "1x1": ("kernel_shape = [1, 1]", (6, 4, 1, 1)),
}

LINEARS = {
    "MatMul of tokens": ("(float[N, 5, 4] x) => (float[N, 5, 6] y) { y = MatMul (x, w) }", (4, 6), (2, 5, 4)),
    "Gemm": ("(float[N, 4] x) => (float[N, 6] y) { y = Gemm (x, w) }", (4, 6), (2, 4)),
    "Gemm, transposed": ("(float[N, 4] x) => (float[N, 6] y) { y = Gemm <transB = 1> (x, w) }", (6, 4), (2, 4)),
}


def _weighted():
    for name, (attributes, shape) in CONVOLUTIONS.items():
        yield pytest.param(*convolution(attributes, normal(*shape)), id=name)
    for name, (text, shape, data) in LINEARS.items():
        yield pytest.param(parse(f"model {text}", w=normal(*shape)), normal(*data), id=name)


WEIGHTED = list(_weighted())


def product_of(proto, count, **feeds):
    """The product of a graph's only layer, whose gradient is its output, so that places can be told apart."""
    (y,) = run(proto, **feeds)
    (layer,) = (layer_of(node) for node in load(proto).graph.nodes)
    values = {name: torch.from_numpy(array) for name, array in feeds.items()}
    piece = layer.piece(values, torch.from_numpy(y), count, np.random.default_rng(0))
    return layer, layer.product([piece] * 2), y


@pytest.mark.parametrize(("proto", "x"), WEIGHTED)
def test_all_places_of_a_layer_multiply_to_its_output(proto, x):
    _, product, y = product_of(proto, 10**6, x=x)
    torch.testing.assert_close(product.output, product.gradient, rtol=1e-4, atol=1e-5)
    assert product.output.numel() == 2 * y.size


@pytest.mark.parametrize(("proto", "x"), WEIGHTED)
def test_some_places_are_those_of_the_gradient(proto, x):
    _, product, _ = product_of(proto, 3, x=x)
    assert product.left.shape[1] == product.gradient.shape[1] <= 6
    torch.testing.assert_close(product.output, product.gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("proto", "x"), WEIGHTED)
def test_weights_keep_their_shape_through_rows(proto, x):
    layer, product, _ = product_of(proto, 3, x=x)
    weight = torch.from_numpy(np.array(layer.node.inputs[1].values))
    torch.testing.assert_close(layer.as_weight(layer.weights), weight)
    torch.testing.assert_close(layer.as_right(layer.weights), product.right)


def test_attention_products_are_looked_at_in_some_heads():
    text = "model (float[N, 6, 5, 4] a, float[N, 6, 4, 3] b) => (float[N, 6, 5, 3] y) { y = MatMul (a, b) }"
    layer, product, _ = product_of(parse(text), 8, a=normal(2, 6, 5, 4), b=normal(2, 6, 4, 3))
    assert layer.activations == ["a", "b"]
    assert product.output.shape == (8, 2, 3), "4 of 12 heads a batch, 2 of 5 rows each"
    torch.testing.assert_close(product.output, product.gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("(float[N, 4] x) => (float[N, 6] y) { y = Gemm <alpha = 2.0> (x, w) }", (4, 6)),
        ("(float[N, 4, 8] x) => (float[N, 6, 8] y) { y = Conv <kernel_shape = [1]> (x, w) }", (6, 4, 1)),
        ('(float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) { y = Conv <auto_pad = "SAME_UPPER"> (x, w) }', (6, 4, 3, 3)),
        ("(float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) { y = ConvTranspose (x, w) }", (4, 6, 1, 1)),
    ],
)
def test_a_product_of_another_form_is_no_layer(text, weight):
    (node,) = load(parse(f"model {text}", w=normal(*weight))).graph.nodes
    assert layer_of(node) is None
