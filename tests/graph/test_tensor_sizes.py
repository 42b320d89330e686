"""Sizes are followed as multiples of the batch size, and nothing is claimed that might not hold."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxquant.graph.model import load
from onnxquant.graph.sizes import Size
from onnxquant.graph.tensor_sizes import TensorSizes
from tests.graphs import parse

N = Size(1, "N")


def sizes_of(line, inputs="float[N, 4, 6] x", outputs="float[A, B] y", **weights):
    weights = {name: np.array(values) for name, values in weights.items()}
    graph: gs.Graph = load(parse(f"g ({inputs}) => ({outputs}) {{ {line} }}", **weights)).graph
    return TensorSizes(graph).of(graph.outputs[0])


@pytest.mark.parametrize(
    ("line", "weights", "expected"),
    [
        ("y = Reshape (x, t)", {"t": [-1, 6]}, (Size(4, "N"), Size(6))),
        ("y = Reshape (x, t)", {"t": [0, -1]}, (N, Size(24))),
        ("y = Reshape (x, t)", {"t": [4, -1]}, (Size(4), Size(6, "N"))),
        ("y = Reshape (x, t)", {"t": [-1, 5]}, (None, Size(5))),
        ("y = Flatten (x)", {}, (N, Size(24))),
        ("y = Flatten <axis = 2> (x)", {}, (Size(4, "N"), Size(6))),
        ("y = Gather <axis = 1> (x, t)", {"t": 0}, (N, Size(6))),
        ("s = Slice (x, t, u, t)\n y = Flatten (s)", {"t": [1], "u": [3]}, (N, Size(12))),
        ("s = Slice (x, t, u, t)\n y = Flatten (s)", {"t": [0], "u": [1]}, (None, Size(24))),
        ("s = Concat <axis = 0> (x, x)\n y = Flatten (s)", {}, (None, Size(24))),
    ],
)
def test_what_a_line_makes_of_a_batch(line, weights, expected):
    assert sizes_of(line, **weights) == expected


def test_arithmetic_on_the_batch_size_is_followed():
    line = """
        s = Shape (x)
        n = Gather (s, zero)
        m = Mul (two, n)
        t = Concat <axis = 0> (m, two, rest)
        y = Reshape (x, t)
    """
    found = sizes_of(line, outputs="float[A, B, C] y", zero=[0], two=[2], rest=[-1])
    assert found == (Size(2, "N"), Size(2), Size(6))


def test_a_computed_size_that_is_not_followed_is_what_the_others_leave():
    line = "t = Concat <axis = 0> (given, six)\n y = Reshape (x, t)"
    assert sizes_of(line, "float[N, 4, 6] x, int64[1] given", six=[6]) == (Size(4, "N"), Size(6))


def test_of_two_computed_sizes_nothing_is_known():
    line = "t = Concat <axis = 0> (given, given)\n y = Reshape (x, t)"
    assert sizes_of(line, "float[N, 4, 6] x, int64[1] given") == (None, None)


@pytest.mark.parametrize(("other", "expected"), [("N", N), ("1", N), ("M", None)])
def test_two_symbols_could_be_broadcast(other, expected):
    found = sizes_of("y = Add (x, z)", f"float[N, 6] x, float[{other}, 6] z")
    assert found == (expected, Size(6))


def test_axes_without_a_name_differ():
    assert sizes_of("y = Add (x, z)", "float[?, 6] x, float[?, 6] z") == (None, Size(6))
