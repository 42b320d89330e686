"""Equal initializers are stored once; unequal ones are left alone."""

import numpy as np
from onnxquant.passes.share_initializers import ShareInitializers
from onnxquant.passes.unshare_initializers import UnshareInitializers

from onnxquant import rewrite
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from tests.graphs import initializers, parse, run


def shared(proto, *before):
    model = load(proto)
    for step in before:
        step.run(model.graph, PassContext(model))
    ShareInitializers().run(model.graph, PassContext(model))
    return model.to_proto()


def test_what_was_copied_is_merged_again():
    proto = parse(
        "g (float[2, 2] x) => (float[2, 2] y) { a = MatMul (x, w) \n y = MatMul (a, w) }", w=np.eye(2, dtype=np.float32)
    )
    assert len(initializers(shared(proto, UnshareInitializers()))) == 1


def test_tensors_that_differ_in_value_shape_or_type_stay_apart():
    proto = parse(
        """g (float[2] x) => (float[2] y, float[2] z, int64[2] i) {
            a = Add (x, ones)
            b = Add (a, twos)
            y = Add (b, row)
            z = Add (x, ones)
            i = Add (whole, whole)
        }""",
        ones=np.ones(2, np.float32),
        twos=np.full(2, 2, np.float32),
        row=np.ones((1, 2), np.float32)[0, :1],
        whole=np.ones(2, np.int64),
    )
    assert set(initializers(shared(proto))) == {"ones", "twos", "row", "whole"}


def test_a_convolution_that_is_used_twice_is_stored_once_after_the_rewrite():
    proto = parse(
        """g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
            a = Conv (x, w)
            r = Relu (a)
            y = Conv (r, w)
        }""",
        w=np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32),
    )
    result = rewrite(proto, overrides=["quantize_conv_weights.rounding=nearest"]).model
    assert sum(name.endswith("_quantized") for name in initializers(result)) == 1
    x = np.ones((1, 4, 8, 8), np.float32)
    np.testing.assert_allclose(run(result, x=x)[0], run(proto, x=x)[0], atol=0.1)
