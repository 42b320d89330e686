"""Products and attention in torch are those of ONNX Runtime."""

import numpy as np
import pytest

from tests.torch_graph.comparing import assert_node_is_same, normal


@pytest.mark.parametrize(
    ("left", "right"), [((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((4,), (4, 5)), ((1, 2, 3, 4), (5, 1, 4, 3))]
)
def test_products_broadcast(left, right):
    assert_node_is_same("MatMul (x0, x1)", normal(*left), normal(*right, seed=1))


@pytest.mark.parametrize("added", [None, (5,), (3, 1), (3, 5), ()])
def test_gemm_adds_what_broadcasts(added):
    weights = {} if added is None else {"c": normal(*added)}
    inputs = ", ".join(["x0", "x1", *weights])
    assert_node_is_same(f"Gemm ({inputs})", normal(3, 4), normal(4, 5), **weights)


def test_gemm_transposes_and_scales():
    call = "Gemm <alpha = 0.5, beta = 2.0, transA = 1, transB = 1> (x0, x1, c)"
    assert_node_is_same(call, normal(4, 3), normal(5, 4), c=normal(5))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]), ("...ij, ...jk", [(2, 3, 4), (2, 4, 5)]), ("ii->i", [(3, 3)])],
)
def test_einsum_is_the_same(equation, shapes):
    inputs = ", ".join(f"x{i}" for i in range(len(shapes)))
    assert_node_is_same(f'Einsum <equation = "{equation}"> ({inputs})', *(normal(*shape) for shape in shapes))


Q, K, V = normal(2, 4, 3, 8), normal(2, 4, 5, 8, seed=1), normal(2, 4, 5, 6, seed=2)


@pytest.mark.parametrize("attributes", ["", "<scale = 0.1>", "<is_causal = 1>"])
def test_attention_is_the_same(attributes):
    assert_node_is_same(f"Attention {attributes} (x0, x1, x2)", Q, K, V, opset=23, reference=True)


@pytest.mark.parametrize("mask", [normal(3, 5), normal(2, 1, 3, 5) > -1], ids=["added", "boolean"])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_is_masked(mask, causal):
    mask = mask | np.eye(3, 5, dtype=bool) if mask.dtype == bool else mask  # no row without a key
    assert_node_is_same(f"Attention <is_causal = {causal}> (x0, x1, x2, m)", Q, K, V, m=mask, opset=23, reference=True)


def test_heads_of_queries_share_those_of_keys():
    call = "Attention <q_num_heads = 4, kv_num_heads = 2> (x0, x1, x2)"
    arrays = normal(2, 3, 32), normal(2, 5, 16, seed=1), normal(2, 5, 12, seed=2)
    assert_node_is_same(call, *arrays, opset=23, reference=True)
