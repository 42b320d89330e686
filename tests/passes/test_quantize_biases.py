"""quantize_biases: int32 where the target takes it and the layer is an integer one."""

import numpy as np
import pytest

from onnxquant import rewrite
from tests.graphs import initializers, parse, run

RNG = np.random.default_rng(3)


def model(bias):
    text = "model (float[N, 64] x) => (float[N, 48] y) { y = Gemm <transB = 1> (x, weight, bias) }"
    return parse(text, weight=RNG.standard_normal((48, 64)).astype(np.float32), bias=np.asarray(bias, np.float32))


def biases(result):
    return {name: values.dtype for name, values in initializers(result.model).items() if name.startswith("bias")}


@pytest.mark.parametrize(("target", "dtype"), [("onnxruntime", np.int32), ("tensorrt", np.float32)])
def test_only_targets_that_take_it_get_an_int32_bias(target, dtype):
    data = RNG.standard_normal((32, 64)).astype(np.float32)
    proto = model(RNG.standard_normal(48))
    options = ["absorb_shift.min_gain=99"]
    result = rewrite(proto, recipe="w8a8", calibration=data, target=target, overrides=options)
    assert dtype in biases(result).values()
    (expected,), (got,) = run(proto, x=data), run(result.model, x=data)
    assert 10 * np.log10(np.square(expected).sum() / np.square(got - expected).sum()) > 35


def test_a_bias_beyond_int32_stays_in_float():
    data = RNG.standard_normal((32, 64)).astype(np.float32)
    result = rewrite(model([1e9] * 48), recipe="w8a8", calibration=data, target="onnxruntime", min_sqnr=-99)
    assert set(biases(result).values()) == {np.dtype(np.float32)}


def test_below_8_bits_a_bias_stays_in_float():
    data = RNG.standard_normal((32, 64)).astype(np.float32)
    proto = model(RNG.standard_normal(48))
    dtypes = {}
    for bits in (8, 7):
        options = [f"quantize_activations.bits={bits}"]
        result = rewrite(proto, recipe="w8a8", calibration=data, target="onnxruntime", overrides=options, min_sqnr=-99)
        dtypes[bits] = set(biases(result).values())
    assert np.dtype(np.int32) in dtypes[8]
    assert dtypes[7] == {np.dtype(np.float32)}


def test_a_layer_with_a_float_activation_keeps_its_float_bias():
    data = RNG.standard_normal((32, 64)).astype(np.float32)
    options = ["quantize_activations.exclude=['.']"]
    result = rewrite(model(np.ones(48)), recipe="w8a8", calibration=data, target="onnxruntime", overrides=options)
    assert set(biases(result).values()) == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["hidden", "weight_dequantized"])
def test_so_it_does_whatever_the_tensors_of_the_model_are_called(name):
    text = f"""model (float[N, 64] x) => (float[N, 48] y) {{
        {name} = Relu (x)
        y = Gemm <transB = 1> ({name}, weight, bias)
    }}"""
    proto = parse(text, **{each: initializers(model(np.ones(48)))[each] for each in ("weight", "bias")})
    data = RNG.standard_normal((32, 64)).astype(np.float32)
    options = ["quantize_linear_weights.bits=7"]
    result = rewrite(proto, recipe="w8a8", calibration=data, target="onnxruntime", overrides=options, min_sqnr=-99)
    assert {"uniform 7", "uniform 8"} == {f"{e.quantizer.kind} {e.quantizer.bits}" for e in result.plan.entries}
    assert set(biases(result).values()) == {np.dtype(np.float32)}
