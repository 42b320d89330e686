"""Every weighted operator gets initializers of its own."""

import numpy as np
from onnxquant.passes.unshare_initializers import UnshareInitializers

from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from tests.graphs import parse, run


def test_two_convolutions_that_share_a_weight_get_one_each():
    proto = parse(
        """g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {
            a = Conv (x, w)
            y = Conv (a, w)
        }""",
        w=np.ones((2, 2, 1, 1), np.float32),
    )
    model = load(proto)
    outcome = UnshareInitializers().run(model.graph, PassContext(model))
    first, second = (node.inputs[1] for node in model.graph.nodes)
    assert outcome.modified
    assert first is not second
    assert first.name != second.name
    x = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(run(model.to_proto(), x=x)[0], run(proto, x=x)[0])


def test_an_initializer_that_only_other_operators_share_stays_one():
    proto = parse("g (float[2] x) => (float[2] y) { a = Add (x, c) \n y = Mul (a, c) }", c=np.ones(2, np.float32))
    model = load(proto)
    assert not UnshareInitializers().run(model.graph, PassContext(model)).modified
