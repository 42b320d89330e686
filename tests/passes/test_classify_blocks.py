"""Blocks are found by structure, on small graphs one rule at a time and on exported networks as a whole."""

import functools
import random
import re

import numpy as np
import pytest
from onnxquant.passes.classify_blocks import ClassifyBlocks, Rule, classify
from pydantic import ValidationError

from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
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
    "queries": np.ones((1, 3, 8)),
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
    "norm_map": np.ones((4, 6, 6)),
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
    "zero_axis": np.array([0], INT),
    "two_dims": np.array([4, -1], INT),
    "flat_rows": np.array([-1, 8], INT),
    "square": np.ones((4, 4)),
    "flag": np.array(True),
    "one": np.ones(1),
    "none": np.zeros(1),
}
INPUT = {"tokens": "float[N, 6, 8] x", "map": "float[N, 4, 6, 6] x"}


def graph(body, source="tokens", rank=3, extra=""):
    """A model with input `x` and output `y`; the constants it names are added."""
    output = ", ".join("abcde"[:rank])
    names = set(re.findall(r"\w+", body))
    weights = {name: value for name, value in CONSTANTS.items() if name in names}
    typed = {
        name: value.astype(np.float32 if value.dtype.kind == "f" else value.dtype) for name, value in weights.items()
    }
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
    found = kinds(
        "a = Conv (x, c1) p = GlobalAveragePool (a) f = Flatten (p) l = MatMul (f, fc) y = Softmax (l)", "map", 2
    )
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
    (block,) = attentions(
        f"{QKV} {norms} a = {queries} b2 = {keys} scores = MatMul (a, b2) p = Softmax (scores) {REST}"
    )
    assert outputs(block) >= {"q", "k", "v", "a", "b2", "out"}


def test_one_linear_and_a_split_may_yield_queries_keys_and_values():
    (block,) = attentions(
        "qkv = MatMul (x, w_qkv) q, k, v = Split <axis = 2> (qkv) kt = Transpose <perm = [0, 2, 1]> (k)"
        f"scores = MatMul (q, kt) p = Softmax (scores) {REST}"
    )
    assert outputs(block) >= {"qkv", "q", "out", "y"}


def test_values_without_a_linear_of_their_own_do_not_draw_in_the_block_before():
    before = "h = MatMul (x, w) r = Relu (h) z = MatMul (r, w) t = Add (z, h)"
    projections = "q = MatMul (t, w) k = MatMul (t, w) kt = Transpose <perm = [0, 2, 1]> (k)"
    (block,) = attentions(
        f"{before} {projections} s1 = MatMul (q, kt) p = Softmax (s1) m = MatMul (p, t) y = MatMul (m, w)"
    )
    assert outputs(block) == {"q", "k", "kt", "s1", "p", "m", "y"}


def test_the_sum_of_two_parts_of_a_value_is_no_residual():
    parts = "vw = MatMul (x, up) v1, v2 = Split <axis = 2> (vw) v = Add (v1, v2)"
    core = "q = MatMul (x, w) k = MatMul (x, w) kt = Transpose <perm = [0, 2, 1]> (k) scores = MatMul (q, kt)"
    (block,) = attentions(f"{parts} {core} p = Softmax (scores) {REST}")
    assert outputs(block) >= {"vw", "v1", "v"}


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


def test_queries_may_be_learned_and_the_same_for_every_input():
    (block,) = attentions(
        "k = MatMul (x, w) kt = Transpose <perm = [0, 2, 1]> (k) scores = MatMul (queries, kt) p = Softmax (scores)"
        "v = MatMul (x, w) mixed = MatMul (p, v) y = MatMul (mixed, w)"
    )
    assert block.variant == "dot"
    assert outputs(block) == {"k", "kt", "scores", "p", "v", "mixed", "y"}


def test_learned_weights_for_other_features_are_not_attention():
    found = kinds(
        "xt = Transpose <perm = [0, 2, 1]> (x) scores = MatMul (queries, xt) p = Softmax (scores)"
        "h = MatMul (x, w) r = Relu (h) v = MatMul (r, w) y = MatMul (p, v)"
    )
    assert "attention" not in found.values()


def test_heads_that_feed_each_other_are_an_attention_each():
    second = QKV.replace("x", "y1")
    for name in ("q", "k", "v", "kt"):
        second = re.sub(rf"\b{name}\b", f"{name}2", second)
    found = attentions(
        f"{QKV} s1 = MatMul (q, kt) p1 = Softmax (s1) m1 = MatMul (p1, v) y1 = Add (m1, x) {second}"
        "s2 = MatMul (q2, kt2) p2 = Softmax (s2) m2 = MatMul (p2, v2)"
        "both = Concat <axis = 1> (m1, m2) y = MatMul (both, w)"
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
        "p = Softmax <axis = 2> (mf) pt = Transpose <perm = [0, 2, 1]> (p)"
        "context = MatMul (flat, pt) y = Relu (context)",
        "map",
    )
    assert "attention" not in found.values()
    assert found["p"] == "other"


def test_a_softmax_over_tokens_that_weighs_a_sum_is_linear_attention():
    (block,) = attentions(
        "t = Conv (x, c_qkv) q, k, v = Split <axis = 1> (t, parts) p = Softmax <axis = -1> (q) weighted = Mul (k, p)"
        "context = ReduceSum (weighted, last) r = Relu (v) mixed = Mul (r, context)"
        "out = Conv (mixed, c1) y = Add (x, out)",
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
    gated = "c = MatMul (t, up) gate = Sigmoid (c) act = Mul (a, gate)"
    found = kinds(f"t = LayerNormalization (x, b) {FIRST} {gated} {SECOND} y = Add (x, z)")
    assert {name for name, kind in found.items() if kind == "mlp"} == {"a", "c", "gate", "act", "z", "y"}


def test_pointwise_convs_with_a_depthwise_one_between_are_an_mlp_after_a_norm():
    found = kinds(
        "t = LayerNormalization <axis = 1> (x, norm_map) a = Conv (t, c_up) r = Relu (a)"
        "d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, dw8) act = Relu (d) z = Conv (act, c_down) y = Add (x, z)",
        "map",
        4,
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
        "f = Conv <pads = [1, 1, 1, 1]> (x, c3) pool = GlobalAveragePool (f) shape = Shape (pool)"
        "p = Reshape (pool, shape) a = Conv (p, c_up) r = Relu (a)"
        "z = Conv (r, c_down) gate = Sigmoid (z) y = Mul (f, gate)",
        "map",
        4,
    )
    assert set(found.values()) == {"conv"}


def test_matmuls_inside_a_residual_are_an_mlp_without_a_norm():
    found = kinds(f"t = MatMul (x, w) {FIRST} act = Relu (a) {SECOND} y = Add (t, z)")
    assert found == {"t": "other", "a": "mlp", "act": "mlp", "z": "mlp", "y": "mlp"}
    found = kinds(f"t = MatMul (x, w) {FIRST} act = Relu (a) {SECOND} y = Mul (t, z)")
    assert "mlp" not in found.values()


DECOMPOSED = "m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) sq = Pow (d, two) v = ReduceMean <axes = [-1]> (sq)"


@pytest.mark.parametrize(
    "end",
    [
        "e = Add (v, s) r = Sqrt (e) y = Div (d, r)",
        "e = Add (v, s) r = Sqrt (e) n = Div (d, r) h = Mul (n, b) y = Add (h, b)",
        "e = Add (v, s) r = Sqrt (e) i = Reciprocal (r) y = Mul (d, i)",
    ],
)
def test_a_layer_norm_in_single_operators_is_one_norm(end):
    (block,) = blocks_of(graph(f"{DECOMPOSED} {end}")).blocks
    assert block.kind == "norm"


def test_a_variance_that_nothing_is_divided_by_is_no_norm():
    assert "norm" not in kinds(f"{DECOMPOSED} e = Add (v, s) r = Sqrt (e) y = Mul (d, d)").values()
    assert "norm" not in kinds(f"{DECOMPOSED} e = Add (v, s) r = Sqrt (e) y = Div (x, r)").values()


def test_an_instance_norm_in_reshapes_is_one_norm_with_its_scale_and_shift():
    body = (
        "a = Reshape (x, grouped) i = InstanceNormalization (a, one, none) shape = Shape (x) c = Reshape (i, shape)"
        "h = Mul (c, g_map) n = Add (h, g_map) y = Relu (n)"
    )
    found = kinds(body, "map", 4)
    assert {name for name, kind in found.items() if kind == "norm"} == {"a", "i", "shape", "c", "h", "n"}


def test_batch_normalization_belongs_to_the_layer_before_it_or_is_a_norm_alone():
    after = kinds("a = Conv (x, c1) n = BatchNormalization (a, g, g, g, g) y = Relu (n)", "map", 4)
    assert set(after.values()) == {"conv"}
    body = "l = MatMul (x, w) f = Reshape (l, flat_rows) n = BatchNormalization (f, b, b, b, b) y = Relu (n)"
    assert set(kinds(body, rank=2).values()) == {"other"}
    alone = kinds("a = Conv (x, c1) r = Add (a, x) n = BatchNormalization (r, g, g, g, g) y = Conv (n, c1)", "map", 4)
    assert alone == {"a": "conv", "r": "conv", "n": "norm", "y": "conv"}


def test_a_conv_takes_its_activation_function_and_the_residual_it_closes():
    blocks = blocks_of(
        graph(
            "a = Conv (x, c1) s1 = Sigmoid (a) h = Mul (a, s1) c = Conv (h, c1) r = Add (a, c) y = Conv (r, c1)",
            "map",
            4,
        )
    ).blocks
    assert [outputs(block) for block in blocks] == [{"a", "s1", "h"}, {"c", "r"}, {"y"}]


def test_a_token_mixer_without_weights_is_a_block_of_its_own():
    found = kinds(
        "a = Conv (x, c1) p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)"
        "d = Sub (p, a) m = Add (a, d)"
        "b1 = Conv (m, c1) z = Conv (b1, c1) y = Add (m, z)",
        "map",
        4,
    )
    assert {name for name, kind in found.items() if kind == "other"} == {"p", "d", "m"}
    assert len({kind for name, kind in found.items() if name not in "pdm"}) == 1


def test_the_choice_of_a_token_begins_a_head_too():
    body = "t = LayerNormalization (x, b) c = Gather <axis = 1> (t, zero) y = MatMul (c, up)"
    assert kinds(body, rank=2) == {"t": "norm", "c": "head", "y": "head"}


def test_a_network_without_a_classifier_has_no_head():
    assert "head" not in kinds("a = Conv (x, c3) r = Relu (a) y = Conv (r, c1)", "map", 4).values()


def test_a_norm_in_single_operators_after_the_pool_is_part_of_the_head():
    pool = "c = Conv (x, c3) p = GlobalAveragePool (c) t = Flatten (p)"
    norm = re.sub(r"\bx\b", "t", DECOMPOSED) + " e = Add (v, s) r = Sqrt (e) n = Div (d, r)"
    found = kinds(f"{pool} {norm} f = Flatten (n) y = MatMul (f, fc)", "map", 2)
    assert {name for name, kind in found.items() if kind == "head"} == set(found) - {"c"}


TOKENS = (
    "flat = Reshape (e, flat_shape) t = Transpose <perm = [0, 2, 1]> (flat)"
    "q = MatMul (t, square) k = MatMul (t, square) v = MatMul (t, square) kt = Transpose <perm = [0, 2, 1]> (k)"
    "scores = MatMul (q, kt) p = Softmax (scores) mixed = MatMul (p, v) out = MatMul (mixed, square) y = Add (out, t)"
)


def bridges(body, rank=3):
    return [outputs(block) for block in blocks_of(graph(body, "map", rank)).of_kind("bridge")]


def test_the_convs_that_lead_into_a_transformer_are_a_bridge_with_their_shape_operators():
    assert bridges(f"f = Conv (x, c1) a = Relu (f) e = Conv (a, c1) {TOKENS}") == [{"f", "a", "e", "flat", "t"}]


def test_a_patch_embedding_is_no_bridge():
    assert bridges(f"e = Conv (x, c1) {TOKENS}") == []


MAPS = (
    "qc = Conv (e, c1) kc = Conv (e, c1) vc = Conv (e, c1) q = Reshape (qc, flat_shape) k = Reshape (kc, flat_shape)"
    "v = Reshape (vc, flat_shape) kt = Transpose <perm = [0, 2, 1]> (k) scores = MatMul (q, kt) p = Softmax (scores)"
    "mixed = MatMul (p, v) back = Reshape (mixed, map_shape) out = Conv (back, c1) y = Add (out, e)"
)
CONVOLUTIONS = "a = Conv <pads = [1, 1, 1, 1]> (s1, dw) b1 = Relu (a) z = Conv (b1, c1) e = Add (s1, z)"


def test_a_stage_that_begins_with_convolutions_has_its_bridge_at_its_entry():
    entry = "l = Conv (x, c1) s0 = Conv <pads = [1, 1, 1, 1]> (l, c3) s1 = Relu (s0)"
    assert bridges(f"{entry} {CONVOLUTIONS} {MAPS}", rank=4) == [{"s0", "s1", "a", "b1"}]


def test_the_last_layer_of_a_stage_of_convolutions_and_the_conv_that_leads_to_tokens_are_a_bridge():
    stage = "s1 = Conv (x, c3) a = Conv (s1, c1) b1 = Relu (a) z = Conv (b1, c1) r = Add (s1, z)"
    entry = "e = Conv <pads = [2, 2, 2, 2]> (r, c3)"
    assert bridges(f"{stage} {entry} {TOKENS}") == [{"z", "r", "e", "flat", "t"}]
    branches = "a = Conv (x, c3) z = Conv (x, c3) r = Add (a, z)"
    assert bridges(f"{branches} {entry} {TOKENS}") == []


def test_where_such_a_stage_turns_into_tokens_the_layer_before_it_counts_too():
    entry = "l = Conv (x, c1) s0 = Conv <pads = [1, 1, 1, 1]> (l, c3) s1 = Relu (s0)"
    assert bridges(f"{entry} {CONVOLUTIONS} {TOKENS}") == [{"l", "s0", "s1", "a", "b1"}]


def test_a_stage_of_attention_on_maps_has_no_bridge():
    assert bridges(f"f = Conv (x, c1) r = Relu (f) e = Conv (r, c1) {MAPS}", rank=4) == []


def test_bridges_are_made_of_convolutions():
    linear = "flat0 = Reshape (x, flat_shape) t0 = Transpose <perm = [0, 2, 1]> (flat0) l = MatMul (t0, square)"
    back = "turned = Transpose <perm = [0, 2, 1]> (l) s0 = Reshape (turned, map_shape)"
    entry = "c = Conv <pads = [1, 1, 1, 1]> (s0, c3) s1 = Relu (c)"
    assert bridges(f"{linear} {back} {entry} {CONVOLUTIONS} {TOKENS}") == [{"c", "s1", "a", "b1"}]
    assert bridges(f"{linear} {back} s1 = Relu (s0) {CONVOLUTIONS} {TOKENS}") == []
    mixed = "flat0 = Reshape (c, flat_shape) t0 = Transpose <perm = [0, 2, 1]> (flat0) l = MatMul (t0, square)"
    tokens = TOKENS[TOKENS.index("q =") :]
    assert bridges(f"f = Conv (x, c1) r = Relu (f) c = Conv (r, c1) {mixed} t = Add (t0, l) {tokens}") == []


def test_attention_to_another_stream_makes_no_stage():
    entry = "l = Conv (x, c1) m = Conv (x, c1) s0 = Conv <pads = [1, 1, 1, 1]> (l, c3) s1 = Relu (s0)"
    other = MAPS.replace("kc = Conv (e", "kc = Conv (m").replace("vc = Conv (e", "vc = Conv (m")
    assert bridges(f"{entry} {CONVOLUTIONS} {MAPS}", rank=4) != []
    assert bridges(f"{entry} {CONVOLUTIONS} {other}", rank=4) == []


def test_two_branches_of_convolutions_that_meet_are_no_bridge():
    entry = "l = Conv (x, c1) m = Conv (x, c1) s1 = Add (l, m)"
    assert bridges(f"{entry} {CONVOLUTIONS} {MAPS}", rank=4) == []


def test_a_pool_that_feeds_a_norm_is_a_block_of_its_own():
    body = "p = MaxPool <kernel_shape = [1, 1]> (x) n = LayerNormalization <axis = 1> (p, norm_map) y = Conv (n, c3)"
    assert kinds(body, "map", 4) == {"p": "other", "n": "norm", "y": "conv"}


def test_shape_arithmetic_goes_with_what_it_shapes():
    body = (
        "c = Conv (x, c1) shape = Shape (x) n = Gather (shape, zero) n2 = Mul (n, n) un = Unsqueeze (n2, zero_axis)"
        "rest = Concat <axis = 0> (un, two_dims) soft = Softmax (c) y = Reshape (soft, rest)"
    )
    found = kinds(body, "map")
    assert {name for name, kind in found.items() if kind == "other"} == set(found) - {"c"}
    assert len(blocks_of(graph(body, "map")).blocks) == 2


def test_a_node_with_a_subgraph_is_left_in_one_piece():
    body = (
        "a = Conv (x, c1) i = If <then_branch = then () => (float[N, 4, 6, 6] r) { r = Relu (a) },"
        "else_branch = other () => (float[N, 4, 6, 6] n) { n = Neg (a) }> (flag)"
        "y = Conv (i, c1)"
    )
    assert kinds(body, "map", 4) == {"a": "conv", "i": "other", "y": "conv"}


def test_the_order_of_the_nodes_in_the_graph_does_not_matter():
    model = load(attention())
    expected = {node.name: block.kind for block in classify(model.graph, model).blocks for node in block.nodes}
    random.Random(0).shuffle(model.graph.nodes)
    blocks = classify(model.graph, model)
    assert {node.name: block.kind for block in blocks.blocks for node in block.nodes} == expected
    assert [node.outputs[0].name for node in blocks.blocks[0].nodes][:2] == ["stem", "act"]


def test_rules_go_before_structure_and_the_first_that_matches_counts():
    body = f"{QKV} scores = MatMul (q, kt) p = Softmax (scores) {REST}"
    rules = (Rule(kind="other", op_type="Softmax"), Rule(kind="head", name=r"^MatMul_|^Softmax_"))
    found = kinds(body, rules=rules)
    assert found["p"] == "other"
    assert {found[name] for name in ("q", "scores", "out")} == {"head"}
    assert found["kt"] == found["y"] == "attention"


def test_attention_whose_softmax_a_rule_takes_has_none():
    body = f"{QKV} scores = MatMul (q, kt) p = Softmax (scores) {REST}"
    blocks = blocks_of(graph(body), (Rule(kind="other", op_type="Softmax"),))
    assert [block.softmax for block in blocks.of_kind("attention")] == [None]


def test_a_rule_can_make_a_softmax_attention():
    blocks = blocks_of(graph("y = Softmax (x)"), (Rule(kind="attention", op_type="Softmax"),))
    (block,) = blocks.blocks
    assert (block.softmax.op, block.variant) == ("Softmax", "")


def test_rules_search_module_scopes_too():
    model = load(load_fixture("mobilevit_xxs", "dynamo"))
    blocks = classify(model.graph, model, (Rule(kind="other", name=r"^stages\.2\.1\."),))
    for block in blocks.blocks:
        inside = {model.scope(node).startswith("stages.2.1.") for node in block.nodes}
        assert block.kind == "other" or True not in inside


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kind": "conv", "name": "a("}, "not a regular expression"),
        ({"kind": "conv"}, "without either"),
        ({"kind": "convolution", "op_type": "Conv"}, "conv"),
    ],
)
def test_a_bad_rule_is_refused_in_one_line(rule, message):
    with pytest.raises(ValidationError, match=message):
        Rule(**rule)
    recipe = Recipe.model_validate({"pass": [{"name": "classify_blocks"}], "rule": [rule]})
    with pytest.raises(OnnxquantError, match=message) as error:
        build_passes(recipe)
    assert "\n" not in str(error.value)


def run_pass(proto):
    model = load(proto)
    before = model.to_proto().SerializeToString(deterministic=True)
    context = PassContext(model)
    result = ClassifyBlocks().run(model.graph, context)
    assert model.to_proto().SerializeToString(deterministic=True) == before
    return context, result


def test_the_pass_fills_the_context_says_what_it_found_and_leaves_the_graph_alone():
    context, result = run_pass(attention())
    assert not result.modified
    assert result.notes == ("2 conv, 1 attention, 1 head",)
    assert context.blocks.count()["attention"] == 1


def test_the_pass_says_so_when_it_finds_nothing():
    _, result = run_pass(graph("a = Neg (x) y = Softmax (a)"))
    assert result.notes == ("no known structure found in 2 nodes",)


COUNTS = {
    "mobilevit_xxs": {"conv": 29, "attention": 9, "mlp": 9, "bridge": 3, "norm": 21, "head": 1},
    "mobilevitv2_050": {"conv": 22, "attention": 9, "mlp": 9, "bridge": 3, "norm": 21, "head": 1},
    "efficientformer_l1": {"conv": 30, "attention": 1, "mlp": 1, "bridge": 1, "norm": 3, "head": 1, "other": 13},
    "efficientformerv2_s0": {"conv": 47, "attention": 5, "bridge": 2, "norm": 1, "head": 1},
}
VARIANTS = {"mobilevitv2_050": "linear"}


GRAPHS = [graph for graph in FIXTURES if graph[0] in COUNTS]  # test_zoo.py has the others


@functools.cache
def classified(name, exporter, anonymous=False):
    proto = load_fixture(name, exporter)
    model = load(anonymise(proto) if anonymous else proto)
    canonicalise(model)
    return model, classify(model.graph, model)


@pytest.mark.parametrize(("name", "exporter"), GRAPHS)
def test_exported_networks_have_the_blocks_they_are_built_of(name, exporter):
    model, blocks = classified(name, exporter)
    assert blocks.count() == COUNTS[name]
    assert sorted(id(node) for block in blocks.blocks for node in block.nodes) == sorted(map(id, model.graph.nodes))
    for block in blocks.of_kind("attention"):
        assert block.variant == VARIANTS.get(name, "dot")
        assert block.softmax.op == "Softmax"


@pytest.mark.parametrize(("name", "exporter"), GRAPHS)
def test_a_network_without_any_names_has_the_same_blocks_at_the_same_places(name, exporter):
    def places(model, blocks):
        position = {id(node): index for index, node in enumerate(model.graph.nodes)}
        return [(block.kind, [position[id(node)] for node in block.nodes]) for block in blocks.blocks]

    expected = places(*classified(name, exporter))
    assert places(*classified(name, exporter, anonymous=True)) == expected
    assert expected == sorted(((kind, sorted(nodes)) for kind, nodes in expected), key=lambda block: block[1][0])


def test_blocks_are_labelled_with_their_module():
    _, blocks = classified("mobilevit_xxs", "dynamo")
    labels = [block.scope for block in blocks.blocks]
    assert labels[0] == "stem.conv"  # and not stem.bn, which was folded into it
    assert "stages.2.1" in labels
    assert "stages.2.1.transformer.0.attn" in labels
    assert "stages.2.1.transformer.0.mlp" in labels
    assert {block.scope for block in classified("mobilevit_xxs", "dynamo", anonymous=True)[1].blocks} == {""}
