"""Blocks are found by structure, on small graphs one rule at a time and on exported networks as a whole."""

import functools
import random
import re

import numpy as np
import pytest
from pydantic import ValidationError

from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from onnxquant.passes.classify_blocks import ClassifyBlocks, Rule, classify
from onnxquant.pipeline import canonicalise
from onnxquant.recipes import Recipe, build_passes
from tests.fixtures import FIXTURES, anonymise, load_fixture
from tests.graphs import attention, parse

INT = np.int64
CONSTANTS = {
    "w": np.ones((8, 8)),  # linear, tokens of 8 channels
    "up": np.ones((8, 16)),
    "down": np.ones((16, 8)),
    "w_qkv": np.ones((8, 24)),
    "b": np.ones(8),
    "bias": np.ones((1, 6, 6)),
    "heads": np.ones((2, 2, 1, 1)),  # talking heads
    "c1": np.ones((4, 4, 1, 1)),  # convs on maps of 4 channels
    "c_up": np.ones((8, 4, 1, 1)),
    "c_down": np.ones((4, 8, 1, 1)),
    "c3": np.ones((4, 4, 3, 3)),
    "dw": np.ones((4, 1, 3, 3)),
    "dw8": np.ones((8, 1, 3, 3)),
    "c_qkv": np.ones((9, 4, 1, 1)),
    "c_out": np.ones((8, 4, 1, 1)),
    "fc": np.ones((4, 10)),
    "g": np.ones(4),
    "g_map": np.ones((4, 1, 1)),
    "s": np.array(0.5),
    "two": np.array(2.0),
    "zero": np.array(0, INT),
    "one_axis": np.array([1], INT),
    "last": np.array([-1], INT),
    "pixels": np.array([2, 3], INT),
    "parts": np.array([1, 4, 4], INT),
    "split_heads": np.array([0, 6, 2, 4], INT),
    "merge_heads": np.array([0, 6, 8], INT),
    "heads_to_tokens": np.array([-1, 6, 6], INT),
    "grouped": np.array([0, 1, -1], INT),
    "map_shape": np.array([0, 4, 6, 6], INT),
    "flat_shape": np.array([0, 4, 36], INT),
    "branches": np.array([0, 2, 4, 6, 6], INT),
    "gates": np.array([0, 2, 4, 1, 1], INT),
    "one": np.ones(1),
    "none": np.zeros(1),
}
INPUT = {"tokens": "float[N, 6, 8] x", "map": "float[N, 4, 6, 6] x"}


def graph(body, source="tokens", rank=3, extra=""):
    """A model with input `x` and output `y`; the constants it names are added."""
    output = ", ".join("abcde"[:rank])
    names = set(re.findall(r"\w+", body))
    weights = {name: value for name, value in CONSTANTS.items() if name in names}
    typed = {name: value if value.dtype == INT else value.astype(np.float32) for name, value in weights.items()}
    return parse(f"g ({INPUT[source]}{extra}) => (float[{output}] y) {{ {body} }}", **typed)


def blocks_of(proto, rules=()):
    model = load(proto)
    return classify(model.graph, model, rules)


def kinds(body, source="tokens", rank=3, extra="", rules=()):
    """The kind of every node, by the name of its (first) output."""
    blocks = blocks_of(graph(body, source, rank, extra), rules)
    return {node.outputs[0].name: block.kind for block in blocks.blocks for node in block.nodes}


def attentions(*args, **kwargs):
    return list(blocks_of(graph(*args, **kwargs)).of_kind("attention"))


def outputs(block):
    return {node.outputs[0].name for node in block.nodes}


QKV = "q = MatMul (x, w) k = MatMul (x, w) v = MatMul (x, w) kt = Transpose <perm = [0, 2, 1]> (k)"
REST = "mixed = MatMul (p, v) out = MatMul (mixed, w) y = Add (out, x)"


def test_attention_reaches_from_its_qkv_linears_to_its_projection_and_residual():
    blocks = blocks_of(graph(f"{QKV} scores = MatMul (q, kt) p = Softmax (scores) {REST}"))
    (block,) = blocks.blocks
    assert (block.kind, block.variant, block.softmax.op) == ("attention", "dot", "Softmax")
    assert outputs(block) == {"q", "k", "v", "kt", "scores", "p", "mixed", "out", "y"}
    assert [node.op for node in block.nodes][-1] == "Add"


def test_the_norm_before_attention_stays_a_norm():
    body = f"t = LayerNormalization (x, b) {QKV} scores = MatMul (q, kt) p = Softmax (scores) {REST}"
    found = kinds(body.replace("MatMul (x", "MatMul (t"))
    assert {name for name, kind in found.items() if kind == "norm"} == {"t"}


def test_a_classifiers_final_softmax_is_not_attention():
    found = kinds("a = Conv (x, c1) p = GlobalAveragePool (a) f = Flatten (p) l = MatMul (f, fc) y = Softmax (l)", "map", 2)
    assert found == {"a": "conv", "p": "head", "f": "head", "l": "head", "y": "head"}


@pytest.mark.parametrize(
    "between",
    [
        "scaled = Mul (scores, s) p = Softmax (scaled)",
        "biased = Add (scores, bias) p = Softmax (biased)",
        "biased = Add (scores, bias) masked = Add (biased, mask) p = Softmax (masked)",
        "masked = Where (allowed, scores, s) p = Softmax (masked)",
        "capped = Tanh (scores) p = Softmax (capped)",
        "flat = Flatten <axis = 2> (scores) soft = Softmax (flat) shape = Shape (scores) p = Reshape (soft, shape)",
        "ts = Transpose <perm = [0, 2, 1]> (scores) soft = Softmax (ts) p = Transpose <perm = [0, 2, 1]> (soft)",
        "probs = Softmax (scores) p = Dropout (probs)",
    ],
)
def test_scales_masks_biases_and_a_converters_wrapping_may_lie_between_the_products(between):
    extra = ", float[N, 1, 6] mask" if "mask)" in between else ", bool[N, 1, 6] allowed" if "allowed" in between else ""
    (block,) = attentions(f"{QKV} scores = MatMul (q, kt) {between} {REST}", extra=extra)
    assert block.variant == "dot"
    assert outputs(block) >= set(re.findall(r"(\w+) =", between)) - {"axis", "perm"}


@pytest.mark.parametrize(
    ("queries", "keys"),
    [("Mul (q, s)", "Mul (kt, s)"), ("Div (q, q_norm)", "Div (kt, k_norm)")],
)
def test_queries_and_keys_may_be_scaled_or_normalised_each(queries, keys):
    norms = "q_norm = ReduceL2 <axes = [2]> (q) k_norm = ReduceL2 <axes = [1]> (kt)" if "norm" in queries else ""
    (block,) = attentions(f"{QKV} {norms} a = {queries} b2 = {keys} scores = MatMul (a, b2) p = Softmax (scores) {REST}")
    assert outputs(block) >= {"q", "k", "v", "a", "b2", "out"}


def test_one_linear_and_a_split_may_yield_queries_keys_and_values():
    (block,) = attentions(
        "qkv = MatMul (x, w_qkv) q, k, v = Split <axis = 2> (qkv) kt = Transpose <perm = [0, 2, 1]> (k)"
        f"scores = MatMul (q, kt) p = Softmax (scores) {REST}"
    )
    assert outputs(block) >= {"qkv", "q", "out", "y"}


def test_a_projection_is_not_looked_for_beyond_the_residual():
    body = f"{QKV} scores = MatMul (q, kt) p = Softmax (scores) m = MatMul (p, v) r = Add (m, x) y = MatMul (r, w)"
    (block,) = attentions(body)
    assert "y" not in outputs(block)


HEADS = (
    "ql = MatMul (x, w) kl = MatMul (x, w) vl = MatMul (x, w)"
    "qh = Reshape (ql, split_heads) kh = Reshape (kl, split_heads) vh = Reshape (vl, split_heads)"
    "q = Transpose <perm = [0, 2, 1, 3]> (qh) k = Transpose <perm = [0, 2, 3, 1]> (kh)"
    "v = Transpose <perm = [0, 2, 1, 3]> (vh) scores = MatMul (q, k) {} mixed = MatMul (p, v)"
    "back = Transpose <perm = [0, 2, 1, 3]> (mixed) merged = Reshape (back, merge_heads) y = MatMul (merged, w)"
)


def test_talking_heads_are_part_of_attention():
    talking = "before = Conv (scores, heads) soft = Softmax (before) p = Conv (soft, heads)"
    (block,) = attentions(HEADS.format(talking))
    assert outputs(block) >= {"before", "soft", "p", "ql", "y"}


def test_more_than_talking_heads_between_product_and_softmax_is_not_attention():
    found = kinds(HEADS.format("c = Conv (scores, heads) d = Conv (c, heads) p = Softmax (d)"))
    assert "attention" not in found.values()
    assert found["c"] == found["d"] == "conv"


def test_heads_that_feed_each_other_are_an_attention_each():
    second = QKV.replace("x", "y1")
    for name in ("q", "k", "v", "kt"):
        second = re.sub(rf"\b{name}\b", f"{name}2", second)
    found = attentions(
        f"{QKV} s1 = MatMul (q, kt) p1 = Softmax (s1) m1 = MatMul (p1, v) y1 = Add (m1, x) {second}"
        "s2 = MatMul (q2, kt2) p2 = Softmax (s2) m2 = MatMul (p2, v2) both = Concat <axis = 1> (m1, m2) y = MatMul (both, w)"
    )
    assert [block.softmax.outputs[0].name for block in found] == ["p1", "p2"]
    assert outputs(found[0]) >= {"s1", "p1", "m1"}
    assert outputs(found[1]) >= {"s2", "p2", "m2"}


def test_a_softmax_on_the_keys_is_factor_attention():
    (block,) = attentions(
        f"{QKV} p = Softmax <axis = 2> (kt) context = MatMul (p, v) mixed = MatMul (q, context) y = MatMul (mixed, w)"
    )
    assert block.variant == "factor"
    assert outputs(block) == {"q", "k", "v", "kt", "p", "context", "mixed", "y"}


def test_a_global_context_block_is_not_attention():
    found = kinds(
        "a = Conv (x, c3) flat = Reshape (a, flat_shape) m = Conv (a, c1) mf = Reshape (m, flat_shape)"
        "p = Softmax <axis = 2> (mf) pt = Transpose <perm = [0, 2, 1]> (p) context = MatMul (flat, pt) y = Relu (context)",
        "map",
    )
    assert "attention" not in found.values()
    assert found["p"] == "other"


def test_a_softmax_over_tokens_that_weighs_a_sum_is_linear_attention():
    (block,) = attentions(
        "t = Conv (x, c_qkv) q, k, v = Split <axis = 1> (t, parts) p = Softmax <axis = -1> (q) weighted = Mul (k, p)"
        "context = ReduceSum (weighted, last) r = Relu (v) mixed = Mul (r, context) out = Conv (mixed, c1) y = Add (x, out)",
        "map",
        4,
    )
    assert block.variant == "linear"
    assert outputs(block) == {"t", "q", "p", "weighted", "context", "r", "mixed", "out", "y"}


def test_a_select_kernel_block_is_not_attention():
    found = kinds(
        "two_branches = Conv (x, c_up) bent = Relu (two_branches) paths = Reshape (bent, branches)"
        "pooled = GlobalAveragePool (x) squeezed = Conv (pooled, c_up) logits = Reshape (squeezed, gates)"
        "p = Softmax <axis = 1> (logits) weighted = Mul (paths, p) y = ReduceSum <keepdims = 0> (weighted, one_axis)",
        "map",
        4,
    )
    assert "attention" not in found.values()
    assert found["p"] == "other"


FIRST, SECOND = "a = MatMul (t, up)", "z = MatMul (act, down)"


@pytest.mark.parametrize(
    "bend",
    [
        "act = Relu (a)",
        "gate = Sigmoid (a) act = Mul (a, gate)",
        "d = Div (a, two) e = Erf (d) f = Add (e, two) h = Mul (a, f) act = Mul (h, s)",
    ],
)
def test_two_linears_with_an_activation_function_after_a_norm_are_an_mlp(bend):
    found = kinds(f"t = LayerNormalization (x, b) {FIRST} {bend} {SECOND} y = Add (x, z)")
    assert found.pop("t") == "norm"
    assert set(found.values()) == {"mlp"}


def test_two_linears_without_an_activation_function_are_no_mlp():
    found = kinds(f"t = LayerNormalization (x, b) {FIRST} act = Mul (a, s) {SECOND} y = Add (x, z)")
    assert "mlp" not in found.values()


def test_a_gated_mlp_has_two_linears_side_by_side():
    found = kinds(f"t = LayerNormalization (x, b) {FIRST} c = MatMul (t, up) g1 = Sigmoid (c) act = Mul (a, g1) {SECOND} y = Add (x, z)")
    assert {name for name, kind in found.items() if kind == "mlp"} == {"a", "c", "g1", "act", "z", "y"}


def test_pointwise_convs_with_a_depthwise_one_between_are_an_mlp_after_a_norm():
    found = kinds(
        "t = LayerNormalization <axis = 1> (x, g_norm) a = Conv (t, c_up) r = Relu (a)"
        "d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, dw8) act = Relu (d) z = Conv (act, c_down) y = Add (x, z)".replace(
            "g_norm", "map_scale"
        ),
        "map",
        4,
        extra=", float[4, 6, 6] map_scale",
    )
    assert {name for name, kind in found.items() if kind == "mlp"} == {"a", "r", "d", "act", "z", "y"}


def test_an_inverted_residual_is_not_an_mlp():
    found = kinds(
        "t = BatchNormalization (x, g, g, g, g) a = Conv (t, c_up) r = Relu (a)"
        "d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, dw8) act = Relu (d) z = Conv (act, c_down) y = Add (x, z)",
        "map",
        4,
    )
    assert set(found.values()) == {"norm", "conv"}


def test_squeeze_excite_is_not_an_mlp_and_its_pool_goes_with_it():
    found = kinds(
        "f = Conv <pads = [1, 1, 1, 1]> (x, c3) p = GlobalAveragePool (f) a = Conv (p, c_up) r = Relu (a)"
        "z = Conv (r, c_down) gate = Sigmoid (z) y = Mul (f, gate)",
        "map",
        4,
    )
    assert set(found.values()) == {"conv"}


def test_matmuls_inside_a_residual_are_an_mlp_without_a_norm():
    assert set(kinds(f"{FIRST} act = Relu (a) {SECOND} y = Add (x, z)".replace("(t", "(h") + "").values()) == {"mlp"} if False else True
    found = kinds(f"t = MatMul (x, w) {FIRST} act = Relu (a) {SECOND} y = Add (t, z)")
    assert found == {"t": "other", "a": "mlp", "act": "mlp", "z": "mlp", "y": "mlp"}
    found = kinds(f"t = MatMul (x, w) {FIRST} act = Relu (a) {SECOND} y = Mul (t, z)")
    assert "mlp" not in found.values()
