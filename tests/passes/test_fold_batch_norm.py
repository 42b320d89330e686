"""BatchNormalization disappears into the layer before it, and nothing changes at the output."""

import numpy as np
import pytest
from onnxquant.passes.fold_batch_norm import FoldBatchNorm

from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from tests.graphs import op_types, parse, run


def normal(*shape):
    return (
        np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    )  # the same in whatever order tests run


def norm_parameters(channels):
    return {
        "gamma": normal(channels),
        "beta": normal(channels),
        "mean": normal(channels),
        "var": normal(channels) ** 2 + 0.1,
    }


def folded(proto):
    model = load(proto)
    result = FoldBatchNorm().run(model.graph, PassContext(model))
    return model.to_proto(), result


@pytest.mark.parametrize(
    ("layer", "weight", "bias"),
    [
        ("Conv <pads = [1, 1, 1, 1]>", (6, 4, 3, 3), True),
        ("Conv <group = 4>", (8, 1, 3, 3), False),
        ("ConvTranspose", (4, 6, 3, 3), True),
        ("ConvTranspose <group = 2>", (4, 3, 3, 3), True),
        ("ConvTranspose <group = 4>", (4, 1, 3, 3), False),
    ],
)
def test_a_norm_after_a_convolution_is_folded(layer, weight, bias):
    groups = 4 if "4" in layer else 2 if "group = 2" in layer else 1
    channels = weight[0] if layer.startswith("Conv ") else weight[1] * groups
    inputs = "x, w, b" if bias else "x, w"
    proto = parse(
        f"""g (float[N, 4, 8, 8] x) => (float[N, {channels}, H, W] y) {{
            h = {layer} ({inputs})
            y = BatchNormalization <epsilon = 0.001> (h, gamma, beta, mean, var)
        }}""",
        w=normal(*weight),
        **({"b": normal(channels)} if bias else {}),
        **norm_parameters(channels),
    )
    result, _ = folded(proto)
    assert op_types(result) == [layer.split()[0]]
    x = normal(2, 4, 8, 8)
    np.testing.assert_allclose(run(result, x=x)[0], run(proto, x=x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<beta = 0.5>"])
def test_a_norm_after_a_linear_is_folded(attributes):
    proto = parse(
        f"""g (float[N, 5] x) => (float[N, 5] y) {{
            h = Gemm {attributes} (x, w, b)
            y = BatchNormalization (h, gamma, beta, mean, var)
        }}""",
        w=normal(5, 5),
        b=normal(5),
        **norm_parameters(5),
    )
    result, _ = folded(proto)
    assert op_types(result) == ["Gemm"]
    x = normal(3, 5)
    np.testing.assert_allclose(run(result, x=x)[0], run(proto, x=x)[0], rtol=1e-4, atol=1e-4)


def test_a_norm_stays_where_the_convolution_has_another_reader():
    proto = parse(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, H, W] y) {
            h = Conv (x, w)
            n = BatchNormalization (h, gamma, beta, mean, var)
            y = Add (n, h)
        }""",
        w=normal(4, 4, 1, 1),
        **norm_parameters(4),
    )
    result, outcome = folded(proto)
    assert "BatchNormalization" in op_types(result)
    assert not outcome.modified


def test_a_norm_stays_where_an_activation_comes_between():
    proto = parse(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, H, W] y) {
            h = Conv (x, w)
            r = Relu (h)
            y = BatchNormalization (r, gamma, beta, mean, var)
        }""",
        w=normal(4, 4, 1, 1),
        **norm_parameters(4),
    )
    assert "BatchNormalization" in op_types(folded(proto)[0])
