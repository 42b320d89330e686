"""Convolutions and pools in torch are those of ONNX Runtime."""

import pytest

from onnxquant.errors import OnnxquantError
from onnxquant.torch_graph import TorchGraph
from tests.torch_graph.comparing import assert_node_is_same, normal, one_node

X = normal(2, 4, 9, 10)


@pytest.mark.parametrize(
    ("attributes", "weight"),
    [
        ("", (6, 4, 3, 3)),
        ("<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>", (6, 4, 3, 3)),
        ("<pads = [0, 1, 2, 0]>", (6, 4, 3, 3)),
        ("<group = 4, pads = [2, 2, 2, 2], dilations = [2, 2]>", (8, 1, 3, 3)),
        ("<group = 2, strides = [1, 3]>", (6, 2, 1, 3)),
        ('<auto_pad = "SAME_UPPER", strides = [2, 2]>', (6, 4, 4, 3)),
        ('<auto_pad = "SAME_LOWER", strides = [2, 2]>', (6, 4, 4, 3)),
        ('<auto_pad = "VALID", strides = [2, 2]>', (6, 4, 3, 3)),
    ],
)
def test_convolutions_are_the_same(attributes, weight):
    assert_node_is_same(f"Conv {attributes} (x0, w, b)", X, w=normal(*weight), b=normal(weight[0]))


@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 4, 5, 6, 7)], ids=["line", "volume"])
def test_so_they_are_over_one_axis_and_over_three(shape):
    weight = normal(3, 4, *[3] * (len(shape) - 2))
    assert_node_is_same("Conv (x0, w)", normal(*shape), w=weight)


@pytest.mark.parametrize(
    ("attributes", "weight"),
    [
        ("", (4, 3, 3, 3)),
        ("<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>", (4, 3, 3, 3)),
        ("<strides = [2, 2], pads = [0, 1, 1, 0], group = 2>", (4, 3, 3, 3)),
        ("<dilations = [2, 1]>", (4, 3, 2, 2)),
    ],
)
def test_transposed_convolutions_are_the_same(attributes, weight):
    assert_node_is_same(f"ConvTranspose {attributes} (x0, w)", X, w=normal(*weight))


WINDOWS = [
    "kernel_shape = [3, 3]",
    "kernel_shape = [3, 2], strides = [2, 2], pads = [1, 1, 1, 1]",
    "kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]",
    "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1",
    "kernel_shape = [2, 2], strides = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1",
    'kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"',
    'kernel_shape = [4, 3], strides = [2, 2], auto_pad = "SAME_LOWER"',
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("counted", [0, 1])
def test_averages_are_the_same(window, counted):
    assert_node_is_same(f"AveragePool <{window}, count_include_pad = {counted}> (x0)", 1 + X, opset=19)


@pytest.mark.parametrize("window", [*WINDOWS, "kernel_shape = [2, 3], dilations = [3, 2], pads = [1, 0, 0, 2]"])
def test_maxima_are_the_same(window):
    assert_node_is_same(f"MaxPool <{window}> (x0)", X - 5)


@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 4, 5, 6, 7)], ids=["line", "volume"])
@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_pools_are_the_same_over_one_axis_and_over_three(op, shape):
    rank = len(shape) - 2
    window = f"kernel_shape = {[3] * rank}, pads = {[1] * 2 * rank}, strides = {[2] * rank}"
    assert_node_is_same(f"{op} <{window}> (x0)", normal(*shape))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools_are_the_same(op):
    assert_node_is_same(f"{op} (x0)", X)


@pytest.mark.parametrize(
    ("call", "outputs", "said"),
    [
        ("ConvTranspose <output_shape = [12, 13]> (x0, w)", "float[] y", r"attribute output_shape = \[12, 13\]"),
        ('ConvTranspose <auto_pad = "SAME_UPPER"> (x0, w)', "float[] y", "attribute auto_pad = SAME_UPPER"),
        ("AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (x0)", "float[] y", "dilations of an average"),
        ("MaxPool <kernel_shape = [2, 2]> (x0)", "float[] y, int64[] i", "only its first output"),
    ],
)
def test_what_is_not_supported_is_refused(call, outputs, said):
    weights = {"w": normal(4, 3, 3, 3)} if "w)" in call else {}
    model, feeds = one_node(call, X, opset=19, outputs=outputs, **weights)
    with pytest.raises(OnnxquantError, match=rf"^node \w+_0 \(\w+\): .*{said}.*; export the model without"):
        TorchGraph(model).run(feeds)
