"""Two models are compared at their outputs and at every tensor they share."""

import math

import numpy as np
import onnx
import pytest

from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.errors import OnnxquantError
from onnxquant.measure.compare import compare
from onnxquant.measure.metrics import sqnr_db
from tests.graphs import attention, images, parse, run

RNG = np.random.default_rng(0)
W1, W2 = RNG.standard_normal((2, 4, 4)).astype(np.float32)
X = RNG.standard_normal((10, 4)).astype(np.float32)

ORIGINAL = "original (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w1) b = Relu (a) y = MatMul (b, w2) }"
QUANTIZED = """rewritten (float[N, 4] x) => (float[N, 4] y) {
    a = MatMul (x, w1)
    q = QuantizeLinear (a, scale, zero)
    a_q = DequantizeLinear (q, scale, zero)
    b = Relu (a_q)
    y = MatMul (b, w2)
}"""


def original(**changes):
    return parse(ORIGINAL, **{"w1": W1, "w2": W2, **changes})


def quantized():
    return parse(QUANTIZED, w1=W1, w2=W2, scale=np.float32(0.05), zero=np.int8(0))


def data(model, x=X):
    return open_dataset(x, input_specs(model), None)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_outputs_are_those_of_the_models_run_alone(batch_size):
    comparison = compare(original(), quantized(), data(original()), batch_size)
    (r,), (t,) = run(original(), x=X), run(quantized(), x=X)
    assert comparison.outputs["y"].samples == 10
    assert comparison.outputs["y"].sqnr_db == pytest.approx(sqnr_db(r, t), abs=0.01)
    assert comparison.outputs["y"].top1_agreement == np.mean(r.argmax(1) == t.argmax(1))


def test_layers_are_the_tensors_of_both_models_worst_first():
    layers = compare(original(), quantized(), data(original())).layers
    assert {(layer.tensor, layer.op) for layer in layers} == {("a", "MatMul"), ("b", "Relu"), ("y", "MatMul")}
    assert [layer.sqnr_db for layer in layers] == sorted(layer.sqnr_db for layer in layers)
    assert layers[-1] == ("a", "MatMul", math.inf)
    a = X @ W1
    rounded = np.clip(np.rint(a / np.float32(0.05)), -128, 127) * np.float32(0.05)
    by_name = {layer.tensor: layer.sqnr_db for layer in layers}
    assert by_name["b"] == pytest.approx(sqnr_db(a.clip(0), rounded.clip(0)), abs=0.01)


def test_a_model_agrees_with_itself_layer_by_layer():
    model = attention()
    comparison = compare(model, model, data(model, images(3)))
    assert comparison.outputs["probabilities"].sqnr_db == math.inf
    assert len(comparison.layers) == len(model.graph.node)
    assert {layer.sqnr_db for layer in comparison.layers} == {math.inf}


def test_layers_can_be_left_out_and_progress_tells_of_what_is_run():
    seen = []
    for per_layer in (False, True):
        comparison = compare(
            original(), quantized(), data(original()), per_layer=per_layer, progress=lambda *step: seen.append(step)
        )
        assert bool(comparison.layers) == per_layer
    assert seen[0] == (10, 10)
    assert seen[1] == (10, 20)
    assert seen[-1] == (20, 20)


def test_integer_tensors_constants_and_tensors_of_another_shape_are_no_layers():
    text = """original (float[N, 4] x) => (float[N, 4] y) {{
        one = Constant <value_float = 1.0> ()
        s = Constant <value_ints = [{shape}]> ()
        i = Cast <to = 7> (x)
        r = Reshape (x, s)
        t = ReduceSum <keepdims = 0> (r)
        y = Add (x, t)
    }}"""
    a, b = parse(text.format(shape="-1, 2")), parse(text.format(shape="-1, 4"))
    assert {layer.tensor for layer in compare(a, b, data(a)).layers} == {"t", "y"}


def test_a_fixed_batch_of_either_model_is_kept_to():
    fixed = parse(ORIGINAL.replace("N", "3"), w1=W1, w2=W2)
    for a, b in ((original(), fixed), (fixed, original()), (fixed, fixed)):
        comparison = compare(a, b, data(original()), 32)
        assert comparison.outputs["y"].samples == 10
        assert comparison.outputs["y"].sqnr_db > 100


def test_broken_values_come_first():
    broken = parse(
        ORIGINAL.replace("original", "broken").replace("Relu (a)", "Log (a)"),
        w1=W1,
        w2=W2,
    )
    comparison = compare(original(), broken, data(original()))
    assert comparison.outputs["y"].sqnr_db == -math.inf
    assert comparison.layers[0].sqnr_db == -math.inf


def test_the_files_and_protos_are_left_as_they_were(tmp_path):
    a, b = original(), quantized()
    before = a.SerializeToString(), b.SerializeToString()
    onnx.save(a, tmp_path / "a.onnx")
    compare(a, b, data(a))
    comparison = compare(tmp_path / "a.onnx", b, data(a))
    assert comparison.layers
    assert (a.SerializeToString(), b.SerializeToString()) == before
    assert (tmp_path / "a.onnx").read_bytes() == before[0]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ORIGINAL.replace("x", "image"), "its inputs differ from those of original in image, x"),
        (ORIGINAL.replace("y", "z"), "its outputs differ from those of original in y, z"),
        (
            ORIGINAL.replace("float[N, 4] x", "float[N, 4] x, float[N, 4] x2"),
            "its inputs differ from those of original in x2",
        ),
        (
            ORIGINAL.replace("original", "pooled").replace(
                "y = MatMul (b, w2)", "c = MatMul (b, w2) y = ReduceSum (c)"
            ),
            "pooled: output y has another shape than in original",
        ),
    ],
)
def test_unlike_models_are_refused(other, said):
    with pytest.raises(OnnxquantError) as raised:
        compare(original(), parse(other.replace("float[N, 4] y", "float[A, B] y"), w1=W1, w2=W2), data(original()))
    assert said in str(raised.value)
    assert "compare like models" in str(raised.value)
