"""Resize in torch is that of ONNX Runtime, or refused."""

import numpy as np
import pytest

from onnxquant.errors import OnnxquantError
from onnxquant.torch_graph import TorchGraph
from tests.torch_graph.comparing import assert_node_is_same, ints, normal, one_node

X = normal(1, 2, 5, 7)


def call(mode, coordinates, more="", inputs="s"):
    return f'Resize <mode = "{mode}", coordinate_transformation_mode = "{coordinates}"{more}> (x0, , {inputs})'


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 0.6, 1.7)], ids=str)
def test_smooth_interpolation_is_the_same(mode, coordinates, scales):
    assert_node_is_same(call(mode, coordinates), X, s=np.float32(scales))


@pytest.mark.parametrize("shape", [(1, 2, 8), (1, 2, 4, 5, 6)], ids=["line", "volume"])
def test_so_it_is_with_one_axis_and_with_three(shape):
    scales = np.float32([1, 1] + [1.5] * (len(shape) - 2))
    assert_node_is_same(call("linear", "half_pixel"), normal(*shape), s=scales)


@pytest.mark.parametrize("opset", [13, 18, 19])
def test_sizes_serve_as_well_as_scales(opset):
    assert_node_is_same(call("linear", "half_pixel", inputs=", s"), X, opset=opset, s=ints(1, 2, 11, 3))


def test_sizes_may_be_of_some_axes_only():
    assert_node_is_same(call("linear", "half_pixel", ", axes = [-1, 2]", ", s"), X, opset=18, s=ints(3, 11))


@pytest.mark.parametrize(
    ("coordinates", "rounding", "scales"),
    [
        ("asymmetric", "floor", (1, 1, 2, 3)),
        ("asymmetric", "floor", (1, 1, 0.5, 0.7)),
        ("half_pixel", "round_prefer_floor", (1, 1, 2, 3)),
        ("half_pixel", "round_prefer_ceil", (1, 1, 0.5, 1.5)),
    ],
)
def test_the_nearest_value_is_the_same(coordinates, rounding, scales):
    assert_node_is_same(call("nearest", coordinates, f', nearest_mode = "{rounding}"'), X, s=np.float32(scales))


@pytest.mark.parametrize(
    ("resize", "scales", "said"),
    [
        (call("nearest", "half_pixel"), (1, 1, 0.5, 0.5), "nearest_mode round_prefer_floor isn't supported"),
        (call("nearest", "asymmetric", ', nearest_mode = "ceil"'), (1, 1, 2, 2), "nearest_mode ceil isn't supported"),
        (call("linear", "asymmetric"), (1, 1, 2, 2), "asymmetric coordinates aren't supported with mode linear"),
        (call("linear", "half_pixel"), (1, 2, 2, 2), "batch and channels can't be resized"),
        (call("linear", "half_pixel", ", exclude_outside = 1"), (1, 1, 2, 2), "attribute exclude_outside = 1"),
    ],
)
def test_what_torch_would_compute_otherwise_is_refused(resize, scales, said):
    model, feeds = one_node(resize, X, s=np.float32(scales))
    with pytest.raises(OnnxquantError, match=rf"^node Resize_0 \(Resize\): .*{said}.*; export the model with"):
        TorchGraph(model).run(feeds)
