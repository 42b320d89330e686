"""quantize_linear_weights: Gemm and MatMul, a scale for each output feature."""

import numpy as np
import pytest

from onnxquant import rewrite
from tests.graphs import initializers, op_types, parse, run

RECIPE = """
[[pass]]
name = "classify_blocks"
[[pass]]
name = "quantize_linear_weights"
"""
RNG = np.random.default_rng(2)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "linear.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.mark.parametrize(
    ("node", "shape", "axis"),
    [
        ("y = MatMul (x, weight)", (8, 6), 1),
        ("y = Gemm (x, weight, bias)", (8, 6), 1),
        ("y = Gemm <transB = 1> (x, weight, bias)", (6, 8), 0),
    ],
)
@pytest.mark.parametrize("rounding", ["nearest", "sum_preserving"])
def test_each_output_feature_has_a_scale_of_its_own(recipe, node, shape, axis, rounding):
    spread = 10.0 ** np.arange(-3, 3)  # features of very different size
    weight = normal(*shape) * (spread if axis == 1 else spread[:, None]).astype(np.float32)
    extra = {"bias": normal(6)} if "bias" in node else {}
    proto = parse(f"model (float[N, 8] x) => (float[N, 6] y) {{ {node} }}", weight=weight, **extra)
    options = [f"quantize_linear_weights.rounding={rounding}"]
    result = rewrite(proto, recipe=recipe, target="tensorrt", overrides=options)
    x = normal(4, 8)
    (expected,), (got,) = run(proto, x=x), run(result.model, x=x)
    assert np.abs(got - expected).max(axis=0) / np.abs(expected).max(axis=0) == pytest.approx(0, abs=0.03)
    assert initializers(result.model)["weight_quantized"].dtype == np.int8
    assert result.plan.entries[0].quantizer.axis == axis


def test_a_table_of_matrices_and_a_product_of_activations_stay_in_float(recipe):
    proto = parse(
        """
        model (float[2, 5, 8] x) => (float[2, 5, 5] y) {
            a = MatMul (x, table)
            b = Transpose <perm = [0, 2, 1]> (a)
            c = MatMul (x, weight)
            y = MatMul (c, b)
        }
        """,
        table=normal(2, 8, 8),
        weight=normal(8, 8),
    )
    result = rewrite(proto, recipe=recipe, target="tensorrt")
    assert [entry.tensor for entry in result.plan.entries] == ["weight"]
    assert op_types(result.model).count("DequantizeLinear") == 1
