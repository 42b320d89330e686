"""Constants end as initializers, Identity nodes vanish, the interface of the graph stays."""

import numpy as np
import pytest
from onnxquant.passes.fold_constants import FoldConstants

from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from tests.graphs import initializers, op_types, parse, run


def folded(proto):
    model = load(proto)
    FoldConstants().run(model.graph, PassContext(model))
    return model.to_proto()


def test_a_weight_in_a_constant_node_becomes_an_initializer():
    proto = parse(
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) {
            w = Constant <value = float[1, 1, 1, 1] {2}> ()
            y = Conv (x, w)
        }"""
    )
    result = folded(proto)
    assert op_types(result) == ["Conv"]
    assert initializers(result)[result.graph.node[0].input[1]].shape == (1, 1, 1, 1)


def test_a_weight_behind_transpose_and_identity_becomes_an_initializer():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    proto = parse(
        """g (float[1, 3] x) => (float[1, 2] y) {
            i = Identity (w)
            t = Transpose <perm = [1, 0]> (i)
            y = MatMul (x, t)
        }""",
        w=weight,
    )
    result = folded(proto)
    assert op_types(result) == ["MatMul"]
    np.testing.assert_array_equal(initializers(result)[result.graph.node[0].input[1]], weight.T)


def test_an_identity_between_activations_vanishes():
    proto = parse("g (float[1, 3] x) => (float[1, 3] y) { a = Relu (x) \n b = Identity (a) \n y = Exp (b) }")
    assert op_types(folded(proto)) == ["Relu", "Exp"]


def test_a_random_value_is_drawn_at_every_run():
    proto = parse("g (float[3] x) => (float[3] y) { r = RandomNormal <shape = [3]> () \n y = Add (x, r) }")
    assert op_types(folded(proto)) == ["RandomNormal", "Add"]


def test_an_identity_that_names_an_output_stays():
    proto = parse("g (float[1, 3] x) => (float[1, 3] y, float[1, 3] z) { y = Relu (x) \n z = Identity (y) }")
    result = folded(proto)
    assert [output.name for output in result.graph.output] == ["y", "z"]
    x = np.array([[-1, 0, 2]], np.float32)
    np.testing.assert_array_equal(run(result, x=x)[1], [[0, 0, 2]])


def test_a_quantized_weight_is_left_quantized():
    proto = parse(
        """g (float[1, 3] x) => (float[1, 2] y) {
            w = DequantizeLinear (codes, scale, zero)
            y = MatMul (x, w)
        }""",
        codes=np.ones((3, 2), np.int8),
        scale=np.float32(0.5),
        zero=np.int8(0),
    )
    assert op_types(folded(proto)) == ["DequantizeLinear", "MatMul"]


@pytest.mark.parametrize(
    ("attributes", "expected"), [("start = 1, end = 2", [3]), ("start = -2", [3, 4]), ("", [2, 3, 4])]
)
def test_part_of_a_static_shape_folds_to_that_part(attributes, expected):
    shape = f"Shape <{attributes}>" if attributes else "Shape"
    proto = parse(f"g (float[2, 3, 4] x) => (int64[n] y) {{ y = {shape} (x) }}")
    result = folded(proto)
    (y,) = run(result, x=np.zeros((2, 3, 4), np.float32))
    assert y.tolist() == run(proto, x=np.zeros((2, 3, 4), np.float32))[0].tolist() == expected


def test_part_of_a_dynamic_shape_is_computed():
    proto = parse("g (float[n, 3, 4] x) => (int64[m] y) { y = Shape <end = 2> (x) }")
    assert run(folded(proto), x=np.zeros((5, 3, 4), np.float32))[0].tolist() == [5, 3]
